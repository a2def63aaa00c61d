"""The names of columns: what real files call a prompt, an answer, a label.

A name is compared without its case, spaces and underscores, so `System Prompt` is
`systemprompt`. In each list, the first name that a row has is used.
"""

from __future__ import annotations

# A prompt and its answer, by the formats that name both. Any other pair comes later.
PAIRS = (
    ("prompt", ("completion",)),
    ("instruction", ("output", "response")),
    ("question", ("answer",)),
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What a column holds, and its names in the order in which they are tried.
CONVERSATIONS = _names(
    "messages conversations conversation dialogue dialog turns chat thread"
)
PROMPTS = _names(
    "prompt instruction instructions question query userprompt usermessage user human "
    "problem request task q"
)
# They are prompts only in a row without a column of PROMPTS.
INPUTS = _names("input inputs source text document article dialogue dialog content")
ANSWERS = _names(
    "completion output response answer outputs answers reply assistant gpt bot "
    "modelresponse expectedoutput solution target targets generation summary "
    "highlights a"
)
CONTEXTS = _names("input inputs context passage")  # appended to the first prompt
SYSTEMS = _names("system systemprompt systemmessage systeminstruction")
HISTORIES = _names("history")
TOOLS = _names("tools functions")
CHOSEN = _names("chosen chosenresponse responsechosen chosenanswer preferred")
REJECTED = _names(
    "rejected rejectedresponse responserejected rejectedanswer dispreferred"
)
PREFIXES = _names("prefix before codebefore leftcontext")
MIDDLES = _names("middle infill hole missing target canonicalsolution")
SUFFIXES = _names("suffix after codeafter rightcontext")
TEXTS = _names(
    "text content document code article body passage story rawcontent page markdown"
)
LABELED = _names(
    "text sentence review reviewtext reviewbody comment tweet content headline "
    "utterance message document title sentence1 premise question query prompt"
)
SECOND = {"sentence1": "sentence2", "premise": "hypothesis"}
CLASSES = _names(
    "labeltext labelname label labels sentiment class intent emotion topic stars "
    "rating category"
)
VERDICTS = _names("label ktotag")
SCORES = _names("score rating reward")  # score_chosen, chosen_score; score_a
BETTER = _names(
    "labels label winner preference preferred better betterresponseid choice chosen"
)
ENDS = (("a", "b"), ("0", "1"), ("1", "2"))  # response_a, response_b
STEMS = _names("response answer completion output humanref summary reply conversation")
SEVERAL = _names("responses completions answers candidates generations outputs")
LIST_SCORES = _names("scores ratings rewards")
RANKS = _names("ranking ranks rank")
META = _names("group category")  # kept with the row
MEDIA = _names("image images audio video videos")  # not supported

"""The names of columns: what real files call a prompt, an answer, a label.

A name is compared without its case, spaces and underscores, so `System Prompt` is
`systemprompt`. In each list, the first name that a row has is used.
"""

from __future__ import annotations


def compact(name: object) -> str:
    """Return a column's name as it is compared: `System Prompt` is `systemprompt`."""
    return "".join(sign for sign in str(name).lower() if sign.isalnum())


# A prompt and its answer, by the formats that name both. Any other pair comes later.
# Of a worked solution and its bare result, the solution is the answer.
PAIRS = (
    ("prompt", ("completion",)),
    ("instruction", ("output", "response")),
    ("question", ("solution", "answer")),
    ("problem", ("solution", "answer")),
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What a column holds, and its names in the order in which they are tried.
CONVERSATIONS = _names(
    "messages conversations conversation dialogue dialog turns chat thread contents"
)
PROMPTS = _names(
    "prompt instruction instructions question query userprompt usermessage user human "
    "problem request task questionstem q"
)
# They are prompts only in a row without a column of PROMPTS.
INPUTS = _names(
    "input inputs inputtext text document article dialogue dialog content ctx"
)
SEVERAL = _names("responses completions answers candidates generations outputs")
ANSWERS = _names(
    "completion output response solution answer outputs answers reply assistant gpt "
    "bot modelresponse expectedoutput correctanswer bestanswer target targets "
    "targettext generatedsolution generation responses completions candidates "
    "generations summary highlights code a"
)
CONTEXTS = _names("input inputs context passage")  # appended to the first prompt
# They are, too, if they hold more than a word, and not the prompt itself.
TEXT_CONTEXTS = _names(
    "article document paragraph story sentence premise hypothesis evidence support "
    "background schema facts knowledge dialogue transcript tweet definition text"
)
SYSTEMS = _names("system systemprompt systemmessage systeminstruction")
HISTORIES = _names("history")
TOOLS = _names("tools functions")
CHOSEN = _names(
    "chosen chosenresponse responsechosen chosenanswer preferred preferredoutput"
)
REJECTED = _names(
    "rejected rejectedresponse responserejected rejectedanswer dispreferred "
    "nonpreferredoutput rejectedmessages"
)
PREFIXES = _names("prefix before codebefore leftcontext")
MIDDLES = _names("middle infill hole missing target canonicalsolution")
SUFFIXES = _names("suffix after codeafter rightcontext")
# The middle of a row with a prompt or prefix, and a column that is named `suffix`.
INFILLS = _names("completion output response answer groundtruth canonicalsolution")
TEXTS = _names(
    "text content document code article body passage story rawcontent page markdown"
)
LABELED = _names(
    "text sentence review reviewtext reviewbody comment commenttext tweet content "
    "headline utterance message document title questiontext fulltext sentence1 premise "
    "question query prompt"
)
# Two texts that one label is about.
TWO_TEXTS = tuple(
    _names(pair)
    for pair in (
        *("sentence1 sentence2", "premise hypothesis", "question1 question2"),
        *("text1 text2", "sentencea sentenceb", "question sentence"),
        *("question passage", "question context", "query document", "query passage"),
        *("title text", "title content", "title body", "title description"),
    )
)
CLASSES = _names(
    "labeltext labelname label labels goldlabel isduplicate sentiment class intent "
    "emotion topic stars rating category"
)
# Whether the answer of a row is good. The last ones are true for a bad answer.
VERDICTS = _names(
    "label ktotag iscorrect correct thumbsup thumbs feedback accepted isgood approved "
    "issafe"
)
BAD_VERDICTS = _names("isbad rejected incorrect thumbsdown isharmful")
# Whether a row or a message is trained. MASKS are true if it is not.
WEIGHTS = _names("weight loss train training trainable lossweight sampleweight")
MASKS = _names("mask masked ignore ignoreloss")
OPTIONS = _names("choices options endings answerchoices alternatives")
LETTERS = tuple(
    tuple(start + sign for sign in signs)
    for signs in ("abcdefgh", "12345678")
    for start in ("", "option", "op", "choice")
)
KEYS = _names(  # the right one of OPTIONS
    "answer answerkey correctanswer correctoption correctchoice correct cop answeridx "
    "answerindex label gold target output response solution"
)
SCORES = _names("score rating reward")  # score_chosen, chosen_score; score_a
BETTER = _names(
    "labels label winner preference preferred better betterresponseid choice chosen"
)
ENDS = (("a", "b"), ("0", "1"), ("1", "2"))  # response_a, response_b
STEMS = _names("response answer completion output humanref summary reply conversation")
LIST_SCORES = _names("scores ratings rewards")
RANKS = _names("ranking ranks rank")
META = _names("group category")  # kept with the row
MEDIA = _names("image images audio video videos")  # not supported

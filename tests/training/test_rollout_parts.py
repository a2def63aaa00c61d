from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils.training.log_probs import pad
from colab_utils.training.rollout_parts import parts

SIZES = st.integers(1, 9)


@given(
    prompts=st.lists(
        st.tuples(SIZES, st.lists(SIZES, min_size=3, max_size=3)), min_size=1
    ),
    tokens=st.integers(1, 200),
)
@settings(deadline=None)
def test_parts_hold_each_answer_once_and_share_prompts(prompts, tokens):
    """Answers to a prompt share all of its tokens but the last one."""
    rows = [
        ([10 + i] * size, [100 + 3 * i + j] * answer)
        for i, (size, answers) in enumerate(prompts)
        for j, answer in enumerate(answers)
    ]
    batch = pad(
        [a + b for a, b in rows], [[0] * len(a) + [1] * len(b) for a, b in rows]
    )
    batch |= {
        "mask": batch["labels"][:, 1:] != -100,
        "rewards": torch.arange(len(rows)),
    }
    seen: list[int] = []
    for numbers, part in parts(batch, 3, tokens):
        assert len(numbers) == 1 or part["input_ids"].numel() <= tokens
        assert part["rewards"].tolist() == numbers
        pairs = part.get("shared", torch.zeros(len(numbers), 2)).tolist()
        for i, (number, (owner, copies)) in enumerate(zip(numbers, pairs, strict=True)):
            prompt, answer = rows[number]
            ids = part["input_ids"][i][part["attention_mask"][i].bool()].tolist()
            assert ids == prompt + answer
            if copies:
                assert copies == len(prompt) - 1
                assert part["input_ids"][owner][:copies].tolist() == prompt[:copies]
                assert not pairs[owner][1]
        first = {number // 3 for number in numbers}
        again = len(numbers) - len(first)
        if all(len(prompt) > 4 for prompt, _ in rows):
            assert sum(copies > 0 for _, copies in pairs) == again
        seen += numbers
    assert sorted(seen) == [*range(len(rows))]

"""`fl recipe data`: the lines under the rows."""

from __future__ import annotations

from typing import Any

from fl import recipe_data


def test_the_counts_add_up_and_rows_for_evaluation_are_apart() -> None:
    def cause(reason: str, rows: int, *, dropped: bool = True) -> dict[str, Any]:
        return {"reason": reason, "rows": rows, "examples": ["mine row 1"], "dropped": dropped}

    counts = {"read": 10, "used": 7, "sequences": 7, "repeated": 0, "eval_rows": 4, "streaming": False, "tokens": 70, "trained_tokens": 35,
              "longest": 12}  # fmt: skip
    causes = [cause("empty answer", 3), cause("in evaluation: empty answer", 2), cause("cut to 12 tokens", 5, dropped=False)]
    lines = recipe_data.summary({"counts": counts, "causes": causes, "cutoff_len": 12, "warnings": ["look"]})
    assert lines == [
        "10 rows read, 7 used, 3 dropped; 7 sequences; 4 rows for evaluation",
        "70 tokens, 35 of them trained (50%); the longest sequence has 12 of 12",
        "dropped: 3 × empty answer (mine row 1, …)",
        "dropped: 2 × in evaluation: empty answer (mine row 1, …)",
        "cut: 5 × cut to 12 tokens (mine row 1, …)",
        "warning: look",
    ]

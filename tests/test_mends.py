"""What ``tools/mends.py`` takes out of the core is there."""

from __future__ import annotations

import pytest

import mends


@pytest.mark.parametrize("name", mends.MENDS)
def test_a_mend_can_be_taken_out(name: str) -> None:
    mend = mends.MENDS[name]
    text = (mends.ROOT / "anyloader" / mend.module).read_text(encoding="utf-8")
    assert text.count(mend.mended) == 1, "it has changed: write anew how it is taken out"
    compile(text.replace(mend.mended, mend.broken), mend.module, "exec")

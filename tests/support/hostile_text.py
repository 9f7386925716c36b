"""Characters that change how other text is shown, or that nobody sees."""

from typing import Final

HOSTILE: Final = (
    *"\x00\x07\x08\t\r\n\x1b\x7f",
    *"\x80\x85\x9b\x9d\x9f",  # C1 controls
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",  # bidirectional controls
    *"\u00ad\u034f\u180e\u200b\u200c\u200d\u2060\u2061\ufeff\u115f\u3164\ufe0f\U000e0041",  # without a width
    *"\u0336\u0489\u20dd",  # marks on the character before
    *"\u2028\u2029\u00a0",
    *"\ud800\udfff\ue000\uffff",
)

"""Ways in which files go wrong, as hypothesis strategies: cut short, bits flipped, pieces lost, doubled or foreign."""

from hypothesis import strategies as st

Change = tuple[str, float, int, bytes]

changes: st.SearchStrategy[list[Change]] = st.lists(
    st.tuples(
        st.sampled_from(["cut", "flip", "set", "drop", "insert", "double"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.binary(max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, how: list[Change]) -> bytes:
    """Apply changes at relative places (0 <= place < 1), one after the other."""
    for kind, place, number, piece in how:
        at = int(place * len(data))
        if kind == "cut":
            data = data[:at]
        elif kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << number % 8)]) + data[at + 1 :]
        elif kind == "set" and data:
            data = data[:at] + bytes([number]) * min(4, len(data) - at) + data[at + 4 :]
        elif kind == "drop":
            data = data[:at] + data[at + number :]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "double":
            data = data[:at] + data[at : at + number] + data[at:]
    return data

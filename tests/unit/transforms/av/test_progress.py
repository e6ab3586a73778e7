"""Progress is whole percents, upwards."""

from aiserver.transforms.av.progress import LINE_LIMIT, Progress


def reported(length: float | None, *pieces: bytes) -> list[int]:
    seen: list[int] = []
    progress = Progress(length, seen.append)
    for piece in pieces:
        progress.feed(piece)
    progress.done()
    return seen


def test_percents_only_go_up_and_come_once() -> None:
    lines = [b"out_time_us=%d\n" % at for at in (0, 1_000_000, 500_000, 1_000_000, 2_000_000)]
    assert reported(4.0, *lines) == [0, 25, 50, 100]


def test_hundred_is_kept_for_the_checked_result() -> None:
    assert reported(1.0, b"out_time_us=5000000\n") == [99, 100]


def test_lines_may_be_cut_anywhere() -> None:
    assert reported(2.0, b"frame=1\nout_ti", b"me_us=1000", b"000\nprogress=continue\n") == [
        50,
        100,
    ]


def test_unknown_lengths_and_times_report_the_end_only() -> None:
    assert reported(None, b"out_time_us=5\n") == [100]
    assert reported(4.0, b"out_time_us=N/A\nout_time_us=-5\n") == [100]


def test_endless_line_is_not_kept() -> None:
    progress = Progress(1.0, lambda _: None)
    for _ in range(100):
        progress.feed(b"x" * 1000)
    assert len(vars(progress)["_rest"]) == LINE_LIMIT

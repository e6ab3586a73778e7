"""What ffprobe prints is read as the reader's own findings are."""

import json
from pathlib import Path

from aiserver.transforms.av import ffprobe
from aiserver.transforms.av.limits import Limits

PRINTED = {
    "streams": [
        {
            "index": 0,
            "codec_type": "video",
            "codec_name": "h264",
            "width": 320,
            "height": 180,
            "sample_aspect_ratio": "4:3",
            "avg_frame_rate": "0/0",
            "r_frame_rate": "25/1",
            "duration": "6.000000",
            "start_time": "0.500000",
            "side_data_list": [{"side_data_type": "Display Matrix", "rotation": -90}],
        },
        {
            "index": 1,
            "codec_type": "audio",
            "codec_name": "aac",
            "channels": 2,
            "sample_rate": "44100",
        },
        {
            "index": 2,
            "codec_type": "video",
            "codec_name": "png",
            "disposition": {"attached_pic": 1},
        },
        {"index": 3, "codec_type": "subtitle", "codec_name": "mov_text"},
    ],
    "format": {
        "format_name": "mov,mp4,m4a,3gp,3g2,mj2",
        "start_time": "0.500000",
        "duration": "6.000000",
        "tags": {"major_brand": "qt  "},
    },
}


def test_tracks_are_read_as_displayed_and_covers_left_out() -> None:
    found = ffprobe.read(json.dumps(PRINTED).encode(), 123)
    assert (found.container, found.brand, found.duration, found.size) == ("mov", "qt", 6.0, 123)
    video, sound = found.tracks
    assert (video.width, video.height, video.rotation) == (180, 320, -90)
    assert (video.aspect, video.rate, video.end) == ("3/4", "25/1", 6.0)
    assert (sound.channels, sound.sample_rate, sound.end) == (2, 44100, None)


def test_duration_by_a_tag_is_read() -> None:
    tagged = {"index": 0, "codec_type": "audio", "tags": {"DURATION": "00:01:06.008000000"}}
    printed = {"streams": [tagged], "format": {"format_name": "matroska,webm"}}
    found = ffprobe.read(json.dumps(printed).encode(), 1)
    assert found.tracks[0].end == 66.008
    assert (found.duration, found.exact) == (None, False)


def test_ffprobe_is_bounded_as_ffmpeg_is() -> None:
    words = ffprobe.arguments(Path("/in/-x"), ("mov", "ogg"), Limits())
    assert words[-2:] == ("-i", "file:/in/-x")
    assert words[words.index("-protocol_whitelist") + 1] == "file"
    assert words[words.index("-format_whitelist") + 1] == "mov,ogg"

"""Files that are not what they say, children that hang or take too much, callers that go away."""

import asyncio
import contextlib
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from aiserver.contract.errors import InvalidRequest, StorageUnavailable
from aiserver.transforms.av.errors import MediaRefused, TransformFailed
from aiserver.transforms.av.limits import Limits
from aiserver.transforms.av.probe import READER, probe
from aiserver.transforms.av.programs import Programs, find_programs
from aiserver.transforms.av.requests import (
    AudioFormat,
    ConvertAudio,
    ConvertVideo,
    Request,
    TrimVideo,
    VideoFormat,
    WatermarkVideo,
)
from clips import Clips, Transforming

TO_MP4 = ConvertVideo(into=VideoFormat.MP4)
TO_WEBM = ConvertVideo(into=VideoFormat.WEBM)
LIMITS = Limits()


def running(folder: Path) -> list[int]:
    """Processes that name the folder on their command line."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def readers() -> list[int]:
    """Children of this process that read files, or wait for one."""
    found: list[int] = []
    for entry in Path("/proc/self/task").iterdir():
        for child in (entry / "children").read_text().split():
            with contextlib.suppress(OSError):
                if READER.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


async def gone(folder: Path) -> bool:
    async with asyncio.timeout(5):
        while running(folder):
            await asyncio.sleep(0.01)
    return True


def program(folder: Path, text: str) -> Programs:
    """An ffmpeg of another kind."""
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Programs(ffmpeg=str(path))


@pytest.fixture
async def listener() -> AsyncGenerator["asyncio.Queue[str]"]:
    """A place on the network that nobody may ask; the queue's first entry is its address."""
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.put_nowait("asked")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    asked.put_nowait(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    yield asked
    server.close()
    await server.wait_closed()


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile '{file}'\n",
    "concat of an address": "ffconcat version 1.0\nfile 'http://{host}/a.mp4'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\nfile://{file}\n#EXT-X-ENDLIST\n",
    "hls of an address": "#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\nhttp://{host}/a.ts\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
    '<Representation id="1"><BaseURL>http://{host}/</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "metadata": ";FFMETADATA1\ntitle=x\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:05,000\nhello\n",
    "hls behind a tag": "ID3\x04\0\0\0\0\0\x0a0123456789#EXTM3U\n#EXTINF:6,\nhttp://{host}/a.ts\n",
    "pictures of subtitles": "# VobSub index file, v7\nsize: 16x16\nid: en, index: 0\n"
    "timestamp: 00:00:00:000, filepos: 000000000\n",
    "picture with references": '<svg xmlns="http://www.w3.org/2000/svg"><image href="http://{host}/x.png"/></svg>',
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, "clip.mp4") for kind in PLAYLISTS),
        ("hls", "a.m3u8"),
        ("hls of an address", "a.m3u8"),
    ],
)
async def test_files_that_name_others_are_refused(
    clips: Clips,
    transformed: Transforming,
    listener: "asyncio.Queue[str]",
    tmp_path: Path,
    kind: str,
    name: str,
) -> None:
    path = tmp_path / name
    path.write_text(PLAYLISTS[kind].format(file=clips.plain(), host=listener.get_nowait()))
    with pytest.raises(MediaRefused, match="cannot be read as audio or video"):
        await transformed(TO_MP4, path)
    assert listener.empty()


def in_another_file(movie: bytes, path: Path) -> bytes:
    """A QuickTime movie whose tracks say that their media lies at this path."""
    record = bytes(10) + b"\x01v" + bytes(26) + bytes(12) + b"\x01f" + bytes(62) + bytes(16)
    record += struct.pack(">hh", 1, 1) + bytes(16)
    for kind, text in ((2, f"v:{str(path)[1:].replace('/', ':')}"), (18, str(path))):
        name = text.encode() + b"\0" * (len(text) % 2)
        record += struct.pack(">hH", kind, len(text)) + name
    record += struct.pack(">hh", -1, 0)
    entry = b"alis" + bytes(4) + record
    entry = struct.pack(">I", 4 + len(entry)) + entry

    def rebuilt(data: bytes) -> bytes:
        made, at = b"", 0
        while at < len(data):
            size, kind = struct.unpack_from(">I4s", data, at)
            inner = data[at + 8 : at + size]
            if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
                inner = rebuilt(inner)
            elif kind == b"dref":
                inner = bytes(4) + struct.pack(">I", 1) + entry
            made += struct.pack(">I4s", 8 + len(inner), kind) + inner
            at += size
        return made

    return rebuilt(movie)


async def test_media_in_another_file_is_not_opened(
    clips: Clips, transformed: Transforming, tmp_path: Path
) -> None:
    # Who opens a pipe that nobody writes to waits for ever.
    os.mkfifo(tmp_path / "pipe")
    own = clips.made("own.mov", "-i", str(clips.plain()), "-c", "copy")
    movie = tmp_path / "movie.mov"
    movie.write_bytes(in_another_file(own.read_bytes(), tmp_path / "pipe"))
    limits = msgspec.structs.replace(LIMITS, seconds=10, probe_seconds=10)
    with contextlib.suppress(MediaRefused):
        await transformed(TO_MP4, movie, limits=limits)
    assert await gone(tmp_path)


@pytest.mark.parametrize(
    "text", ["concat:{0}|{0}", "http://127.0.0.1:9/x", "-", "pipe:0", "data:,x"]
)
async def test_name_is_never_a_protocol(
    clips: Clips, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TransformFailed, match="gone"):
        await probe(Path(text.format(clips.plain().name)), programs=find_programs(), limits=LIMITS)


@pytest.mark.parametrize(
    ("head", "message"),
    [(b"", "is empty"), (b"hello", "cannot be read"), (os.urandom(64) * 100, "cannot be read")],
)
async def test_what_is_no_media_is_refused(
    transformed: Transforming, tmp_path: Path, target: Path, head: bytes, message: str
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(head)
    with pytest.raises(MediaRefused, match=message):
        await transformed(TO_MP4, path)
    assert list(target.iterdir()) == []


async def test_truncated_file_is_refused(
    clips: Clips, transformed: Transforming, tmp_path: Path, target: Path
) -> None:
    early = clips.made(
        "early.mp4", "-i", str(clips.clock()), "-c", "copy", "-movflags", "+faststart"
    )
    for clip in (early, clips.made("clock.mkv", "-i", str(clips.clock()), "-c", "copy")):
        half = tmp_path / clip.name
        half.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
        with pytest.raises(MediaRefused, match="cut short or damaged"):
            await transformed(TrimVideo(start="1", end="5.9"), half)
    assert list(target.iterdir()) == []


async def test_mislabelled_file_is_read_as_what_it_is(
    clips: Clips, transformed: Transforming, tmp_path: Path
) -> None:
    path = tmp_path / "clip.png"
    path.write_bytes(clips.two_tongued().read_bytes())
    made = await transformed(TO_MP4, path)
    assert len(made.found.audios) == 2


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (TO_MP4, "no video"),
        (WatermarkVideo(), "No watermark image file provided"),
        (TrimVideo(start="invalid"), "Invalid start time format"),
    ],
)
async def test_request_that_a_file_cannot_meet_is_refused(
    clips: Clips, transformed: Transforming, request_: Request, message: str
) -> None:
    song = clips.made("song.wav", "-i", str(clips.plain()), "-vn")
    with pytest.raises(InvalidRequest, match=message):
        await transformed(request_, song)


async def test_silent_file_has_no_audio(clips: Clips, transformed: Transforming) -> None:
    with pytest.raises(MediaRefused, match="no audio"):
        await transformed(ConvertAudio(into=AudioFormat.MP3), clips.silent())


async def test_watermark_is_a_picture(
    clips: Clips, transformed: Transforming, tmp_path: Path
) -> None:
    vector = tmp_path / "mark.png"
    vector.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    for mark in (vector, clips.plain()):
        with pytest.raises(MediaRefused, match="cannot be read as a picture"):
            await transformed(WatermarkVideo(), clips.plain(), mark)


async def test_transform_that_takes_too_long_is_ended(
    clips: Clips, transformed: Transforming, target: Path
) -> None:
    limits = msgspec.structs.replace(LIMITS, seconds=0.2)
    with pytest.raises(TransformFailed, match=r"longer than 0\.2 seconds"):
        await transformed(TO_WEBM, clips.long(), limits=limits)
    assert await gone(target)
    assert list(target.iterdir()) == []


async def test_program_that_hangs_with_its_children_is_ended(
    clips: Clips, transformed: Transforming, tmp_path: Path, target: Path
) -> None:
    hangs = program(tmp_path, f"trap '' TERM; sh -c 'sleep 60; : {target}' & wait; sleep 60")
    limits = msgspec.structs.replace(LIMITS, seconds=0.3)
    with pytest.raises(TransformFailed, match="longer"):
        await transformed(TO_MP4, clips.plain(), limits=limits, programs=hangs)
    assert await gone(target)


async def test_probe_that_takes_too_long_is_ended(clips: Clips, tmp_path: Path) -> None:
    limits = msgspec.structs.replace(LIMITS, probe_seconds=0.005)
    with pytest.raises(TransformFailed, match="Reading this file took longer"):
        await probe(clips.plain(), programs=find_programs(), limits=limits)
    assert await gone(clips.plain())


async def test_processor_time_is_bounded(
    clips: Clips, transformed: Transforming, target: Path
) -> None:
    limits = msgspec.structs.replace(LIMITS, cpu_seconds=1)
    with pytest.raises(TransformFailed, match="more than 1 seconds of processor time"):
        await transformed(TO_WEBM, clips.long(), limits=limits)
    assert list(target.iterdir()) == []


async def test_memory_is_bounded(clips: Clips, transformed: Transforming, target: Path) -> None:
    limits = msgspec.structs.replace(LIMITS, memory=300 << 20)
    with pytest.raises((TransformFailed, MediaRefused)):
        await transformed(TO_WEBM, clips.long(), limits=limits)
    assert list(target.iterdir()) == []


async def test_result_that_grows_too_large_is_refused(
    clips: Clips, transformed: Transforming, target: Path
) -> None:
    limits = msgspec.structs.replace(LIMITS, result_bytes=4000)
    with pytest.raises(MediaRefused, match="larger than 4000 bytes"):
        await transformed(TO_MP4, clips.plain(), limits=limits)
    assert list(target.iterdir()) == []


async def test_full_disk_is_said_and_leaves_nothing(
    clips: Clips, transformed: Transforming, target: Path
) -> None:
    (target / "result.mkv").symlink_to("/dev/full")
    with pytest.raises(StorageUnavailable, match="disk is full"):
        await transformed(ConvertVideo(into=VideoFormat.MKV), clips.plain())
    assert list(target.iterdir()) == []


async def test_cancelled_transform_ends_its_process(
    clips: Clips, transformed: Transforming, target: Path
) -> None:
    began = asyncio.Event()
    running_one = asyncio.ensure_future(
        transformed(TO_WEBM, clips.long(), report=lambda _: began.set())
    )
    async with asyncio.timeout(20):
        await began.wait()
    assert running(target)
    running_one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running_one
    assert await gone(target)
    assert list(target.iterdir()) == []


ORPHAN = """
import asyncio, sys
from pathlib import Path
from aiserver.transforms.av.limits import Limits
from aiserver.transforms.av.requests import ConvertVideo, VideoFormat
from aiserver.transforms.av.run import Sources, transform

asyncio.run(transform(
    ConvertVideo(into=VideoFormat.WEBM), Sources(media=Path(sys.argv[1])), Path(sys.argv[2]),
    report=lambda percent: print(percent, flush=True), limits=Limits(),
))
"""


async def test_ffmpeg_ends_with_a_server_that_was_killed(clips: Clips, target: Path) -> None:
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ORPHAN, str(clips.long()), str(target)), stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    await server.stdout.readline()
    assert len(running(target)) > 1
    server.kill()
    await server.wait()
    assert await gone(target)


async def test_child_sees_nothing_of_the_servers_environment(
    clips: Clips, transformed: Transforming, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    tells = program(tmp_path, "env >&2; exit 1")
    with pytest.raises(MediaRefused) as caught:
        await transformed(TO_MP4, clips.plain(), programs=tells)
    assert "PATH=" in caught.value.detail
    assert "s3cret" not in caught.value.detail


async def test_flood_of_complaints_is_bounded(
    clips: Clips, transformed: Transforming, tmp_path: Path
) -> None:
    floods = program(tmp_path, "yes complaint | head -c 3000000 >&2; echo last >&2; exit 1")
    with pytest.raises(MediaRefused) as caught:
        await transformed(TO_MP4, clips.plain(), programs=floods)
    assert len(caught.value.detail) <= 8192
    assert caught.value.detail.endswith("last")
    assert "complaint" not in caught.value.message


async def test_crash_is_the_servers_failure(
    clips: Clips, transformed: Transforming, tmp_path: Path
) -> None:
    crashes = program(tmp_path, "kill -SEGV $$")
    with pytest.raises(TransformFailed, match="failed on the server"):
        await transformed(TO_MP4, clips.plain(), programs=crashes)


async def test_reader_of_the_result_ends_with_a_failure(
    clips: Clips, transformed: Transforming, tmp_path: Path
) -> None:
    crashes = program(tmp_path, "sleep 0.2; kill -SEGV $$")
    with pytest.raises(TransformFailed):
        await transformed(TO_MP4, clips.plain(), programs=crashes)
    assert not readers()


async def test_reader_that_died_while_it_waited_is_replaced(
    clips: Clips, transformed: Transforming, tmp_path: Path, target: Path
) -> None:
    done = program(
        tmp_path,
        f"until [ -e {tmp_path}/killed ]; do sleep 0.01; done; cp {clips.plain()} {target}/result.mp4",
    )
    making = asyncio.ensure_future(transformed(TO_MP4, clips.plain(), programs=done))
    async with asyncio.timeout(10):
        while not (running(target) and readers()):
            await asyncio.sleep(0.01)
    for each in readers():
        os.kill(each, signal.SIGKILL)
    (tmp_path / "killed").touch()
    assert (await making).found.tracks


async def test_wrong_result_is_thrown_away(
    clips: Clips, transformed: Transforming, tmp_path: Path, target: Path
) -> None:
    cheats = program(tmp_path, f"cp {clips.turned()} {target}/result.mp4")
    with pytest.raises(TransformFailed, match="wrong file"):
        await transformed(TO_MP4, clips.plain(), programs=cheats)
    assert list(target.iterdir()) == []


async def test_ffprobe_that_fails_is_made_up_for(clips: Clips, tmp_path: Path) -> None:
    broken = program(tmp_path, "exit 139").ffmpeg
    by_two = Programs(ffmpeg=find_programs().ffmpeg, ffprobe=broken)
    found = await probe(clips.plain(), programs=by_two, limits=LIMITS)
    assert found == await probe(clips.plain(), programs=find_programs(), limits=LIMITS)


def test_server_never_loads_the_libraries_of_ffmpeg() -> None:
    code = (
        "import sys, aiserver.transforms.av.run; print({'av', 'imageio_ffmpeg'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_packaged_ffmpeg_stands_in_for_the_systems(tmp_path: Path) -> None:
    assert "imageio_ffmpeg" in find_programs(path=str(tmp_path)).ffmpeg
    for name in ("ffmpeg", "ffprobe"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    found = find_programs(path=str(tmp_path))
    assert found == Programs(ffmpeg=f"{tmp_path}/ffmpeg", ffprobe=f"{tmp_path}/ffprobe")


@pytest.mark.long
async def test_mutated_files_never_fail_the_server(
    clips: Clips, transformed: Transforming, tmp_path: Path, target: Path
) -> None:
    chance = random.Random(7)
    sources = [clips.plain(), clips.two_tongued(), clips.clock()]
    made = [VideoFormat.WEBM, VideoFormat.AVI, VideoFormat.WMV, VideoFormat.MPEG, VideoFormat.OGG]
    for into in made:
        done = await transformed(ConvertVideo(into=into), clips.plain())
        sources.append(done.path.rename(tmp_path / done.path.name))
    limits = msgspec.structs.replace(LIMITS, seconds=30)
    for _ in range(300):
        path = tmp_path / "mutated"
        path.write_bytes(mutated(chance.choice(sources).read_bytes(), chance))
        with contextlib.suppress(InvalidRequest):
            await transformed(ConvertVideo(into=VideoFormat.MP4), path, limits=limits)
        for left in target.iterdir():
            left.unlink()


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, most of them in the headers; at times cut off or doubled."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 4, 32, 256))):
        near = min(len(changed), chance.choice((256, 4096, len(changed))))
        changed[chance.randrange(near)] = chance.randrange(256)
    match chance.randrange(6):
        case 0:
            return bytes(changed[: chance.randrange(1, len(changed))])
        case 1:
            return bytes(changed + changed)
        case _:
            return bytes(changed)

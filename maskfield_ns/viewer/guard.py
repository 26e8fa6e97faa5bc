"""Guards around viser's web server and nerfstudio's render threads: who may connect, what is served, what is believed.

viser 0.2.7, which nerfstudio 1.1.5 pins, serves files outside its folder, talks to any page and host name, forgets to
clean up after clients that send nonsense, and believes every value of a widget. :func:`guard_viewers` mends it for
every viewer of the process; each guard says what it is about.
"""

from __future__ import annotations

import asyncio
import functools
import http
import ipaddress
import math
import os
import re
import threading
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

from nerfstudio.utils.rich_utils import CONSOLE

from maskfield_ns.compat import TRACEBACK_VARIABLE

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""Names under which a viewer that listens on the loopback interface may be asked for."""
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # viser draws markdown by running it
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' ws://localhost:* ws://127.0.0.1:* data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
    )
)
"""Content-Security-Policy of the viewer's page: it loads from and talks to nobody but its own server."""
MAX_UPLOAD_BYTES = 1 << 30
"""Largest file that a browser may send."""
MAX_UPLOADS_PER_CLIENT = 4
"""Unfinished uploads a client may have at a time."""
MAX_TEXT = 10_000
"""Characters of a text field."""
MAX_IMAGE_PIXELS = 1 << 24
"""Pixels of the largest image that a viewer renders."""
_TRACKER = re.compile(rb"\s*<!-- Google tag.*?</script>.*?</script>", re.DOTALL)
_MARK = "_is_maskfield_patch"


def guard_viewers() -> None:
    """Installs all guards, once per process. Cheap: nothing is imported that nerfstudio's viewer does not import."""
    confine_viewer_files()
    guard_connections()
    guard_values()
    guard_render_threads()
    keep_to_ourselves()
    look_past_ended_processes()


# --- what is served ---------------------------------------------------------------------------------------------------


class ClientFolder:
    """The folder of viser's web page as viser's request handler uses it: ``folder / relative path of the request``.

    The result of the division is always a file inside the folder, or a path that does not exist: viser then answers
    404.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).resolve()

    def __truediv__(self, requested: str) -> Path:
        nothing = self.root / "no such file"
        try:
            found = (self.root / requested).resolve()  # follows .. and symbolic links; an absolute path replaces root
            inside = found.is_relative_to(self.root) and found.is_file()
        except (OSError, ValueError, RuntimeError):  # names too long, null bytes, loops of links
            return nothing
        return found if inside else nothing


def confine_viewer_files() -> None:
    """Keeps viser from serving files outside its own client folder.

    viser 0.2.7 joins the requested path to its folder as it is, so that ``GET /../../../../etc/passwd`` returns that
    file to whoever can connect (rejected upstream from viser 1.1.1 on).
    """
    from viser.infra import WebsockServer

    original = WebsockServer.__init__
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self._http_server_root is not None:
            self._http_server_root = ClientFolder(self._http_server_root)

    setattr(init, _MARK, True)
    WebsockServer.__init__ = init


# --- who may connect, and what becomes of who has left ----------------------------------------------------------------


def guard_connections() -> None:
    """Answers only who asks for this viewer from its own page, and lets nothing of a closed connection stay behind.

    Browsers let any page open a websocket to 127.0.0.1 and say where the page came from (Origin), and a page can give
    its own host name the address 127.0.0.1 (DNS rebinding), which shows in Host; viser 0.2.7 looks at neither. A
    message that cannot be decoded ends viser's connection without its clean-up, and the task that sends broadcasts
    outlives every connection until the next broadcast.
    """
    from viser.infra import _infra as module

    _infra: Any = module  # names that viser does not export
    if hasattr(_infra.websockets, _MARK):
        return
    genuine = _infra.websockets
    produce = getattr(_infra._message_producer, "__wrapped__", _infra._message_producer)
    consume = getattr(_infra._message_consumer, "__wrapped__", _infra._message_consumer)
    senders: dict[Any, set[asyncio.Task]] = {}

    class OfOneConnection:
        """A message buffer with a flush event of its own, for which viser's sender leaves a task waiting."""

        def __init__(self, buffer: Any) -> None:
            self._buffer, self.flush_event = buffer, asyncio.Event()

        def window_generator(self, client_id: Any) -> Any:
            return type(self._buffer).window_generator(self, client_id)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._buffer, name)

    @functools.wraps(produce)
    async def producer(websocket: Any, buffer: Any, *rest: Any) -> None:
        task, own = asyncio.current_task(), OfOneConnection(buffer)
        assert task is not None
        senders.setdefault(websocket, set()).add(task)
        try:
            await produce(websocket, own, *rest)
        finally:
            own.flush_event.set()

    @functools.wraps(consume)
    async def consumer(websocket: Any, handle: Any, message_class: Any) -> None:
        def checked(message: Any) -> None:
            if type(message).__name__ == "ViewerCameraMessage" and not sane_camera(message):
                raise ValueError("a camera that is none")
            handle(message)

        try:
            await consume(websocket, checked, message_class)
        except (genuine.exceptions.ConnectionClosedOK, genuine.exceptions.ConnectionClosedError):
            raise
        except Exception as error:  # not a message of viser: its decoder raises anything
            CONSOLE.print(
                f"viewer: a client sent what is no message ({type(error).__name__}); its connection is closed"
            )
            await websocket.close(1003, "not a message of this viewer")
            await websocket.recv()  # raises ConnectionClosed, for which viser cleans up

    def serve(handler: Any, host: Any, *args: Any, process_request: Any = None, **kwargs: Any) -> Any:
        async def guarded(path: str, headers: Any) -> Any:
            why = refusal(str(host), headers.get("Host"), headers.get("Origin"))
            if why:
                return http.HTTPStatus.FORBIDDEN, {}, f"403: {why}\n".encode()
            answer = None if process_request is None else await process_request(path, headers)
            return None if answer is None else protected(*answer)

        async def handled(websocket: Any, *rest: Any) -> None:
            try:
                await handler(websocket, *rest)
            finally:
                for task in senders.pop(websocket, ()):
                    task.cancel()

        return genuine.server.serve(handled, host, *args, process_request=guarded, **kwargs)

    class Websockets:
        """The library as viser's server module sees it."""

        server = type("server", (), {"serve": staticmethod(serve)})

        def __getattr__(self, name: str) -> Any:
            return getattr(genuine, name)

    setattr(Websockets, _MARK, True)

    def one_line(act: Any) -> Any:
        def run() -> None:
            try:
                act()
            except Exception as error:
                if os.environ.get(TRACEBACK_VARIABLE):
                    raise
                CONSOLE.print(f"viewer: {type(error).__name__}: {str(error).partition(chr(10))[0]}")

        return run

    _infra.websockets = Websockets()
    _infra.error_print_wrapper = one_line
    _infra._message_producer, _infra._message_consumer = producer, consumer


def refusal(address: str, host: str | None, origin: str | None) -> str | None:
    """Why a request is refused; None if it is not.

    Args:
        address: that the server listens on.
        host: the request's Host header, ``name:port``.
        origin: its Origin header, which browsers send for pages and programs do not. Headers of proxies
            (X-Forwarded-Host) are not believed: whoever reaches the server can send them.
    """
    if is_loopback(address) and host is not None and _name(host) not in LOOPBACK_NAMES:
        return (
            f"this viewer answers as {', '.join(LOOPBACK_NAMES)} only (start it with --viewer.websocket-host to change)"
        )
    if foreign_origin(origin, host):
        return "this page does not belong to this viewer"
    return None


def sane_camera(message: Any) -> bool:
    """Whether a client's camera is one: finite numbers, a rotation, an angle of view between 0 and 180 degrees."""
    lengths = {"wxyz": 4, "position": 3, "look_at": 3, "up_direction": 3}
    for name, length in lengths.items():
        value = getattr(message, name)
        if (
            not isinstance(value, (list, tuple))
            or len(value) != length
            or not all(_number(v, -1e6, 1e6) for v in value)
        ):
            return False
    turned = sum(v * v for v in message.wxyz) > 1e-6
    return turned and _number(message.fov, 1e-3, math.pi - 1e-3) and _number(message.aspect, 1e-2, 1e2)


def is_loopback(address: str) -> bool:
    """Whether an address that a server listens on can be reached from this machine only."""
    if address.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def foreign_origin(origin: str | None, host: str | None) -> bool:
    """Whether a request comes from a page of another address than it asks for."""
    if origin is None:
        return False
    return host is None or urllib.parse.urlsplit(origin).netloc.lower() != host.lower()


def _name(host: str) -> str:
    """The host of a Host header, without its port."""
    name = host.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]


def protected(status: Any, headers: Any, body: bytes) -> tuple[Any, dict[str, str], bytes]:
    """An answer of viser's web server, with headers that keep the page to its own server and without its tracker."""
    headers = dict(headers) | {
        "Content-Security-Policy": POLICY,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    if headers.get("Content-Type") == "text/html":
        import gzip

        packed = headers.get("Content-Encoding") == "gzip"
        page = _TRACKER.sub(b"", gzip.decompress(body) if packed else body)
        body = gzip.compress(page) if packed else page
    return status, headers, body


# --- what clients send ------------------------------------------------------------------------------------------------


def guard_values() -> None:
    """Believes a widget's value only where the widget could have sent it, and bounds what clients upload.

    Values out of a slider's range, of another type, or not finite are dropped before any callback sees them. Uploads
    have a largest size, end when more arrives than was announced, and are forgotten when their client leaves.
    """
    from viser._gui_api import GuiApi

    if getattr(GuiApi, _MARK, False):
        return
    updates, start, part = (
        GuiApi._handle_gui_updates,
        GuiApi._handle_file_transfer_start,
        GuiApi._handle_file_transfer_part,
    )
    original_init, made = GuiApi.__init__, GuiApi._create_gui_input

    def init(self: Any, owner: Any, thread_executor: Any) -> None:
        self._maskfield_uploads = {}
        original_init(self, owner, thread_executor)
        server = vars(owner).get("_websock_server")  # of a server; clients end together with theirs
        if server is not None:
            server.on_client_disconnect(lambda connection: forget(self, connection.client_id))

    def forget(self: Any, client: int) -> None:
        for upload in [u for u, owner in self._maskfield_uploads.items() if owner == client]:
            del self._maskfield_uploads[upload]
            self._current_file_upload_states.pop(upload, None)

    def handle_updates(self: Any, client_id: Any, message: Any) -> None:
        handle = self._gui_input_handle_from_id.get(message.id)
        if handle is None or not isinstance(message.updates, dict):
            return
        state = handle._impl
        good = {}
        for name, value in message.updates.items():
            if name == "value" and believable(state, handle, value):
                good[name] = value
        if len(good) == len(message.updates):
            updates(self, client_id, message)

    def handle_start(self: Any, client_id: Any, message: Any) -> None:
        size, parts = message.size_bytes, message.part_count
        sane = isinstance(size, int) and isinstance(parts, int) and 0 < size <= MAX_UPLOAD_BYTES and 0 < parts <= size
        busy = Counter(self._maskfield_uploads.values())[client_id]
        if not sane or busy >= MAX_UPLOADS_PER_CLIENT or message.transfer_uuid in self._maskfield_uploads:
            most = f"{MAX_UPLOAD_BYTES >> 20} MB, {MAX_UPLOADS_PER_CLIENT} at a time"
            CONSOLE.print(f"viewer: an upload was refused (at most {most})")
            return
        self._maskfield_uploads[message.transfer_uuid] = client_id
        start(self, client_id, message)

    def handle_part(self: Any, client_id: Any, message: Any) -> None:
        state = self._current_file_upload_states.get(message.transfer_uuid)
        if state is None or self._maskfield_uploads.get(message.transfer_uuid) != client_id:
            return
        fits = isinstance(message.part, int) and 0 <= message.part < state["part_count"]
        fits = fits and isinstance(message.content, bytes) and message.part not in state["parts"]
        received = state["transferred_bytes"] + (len(message.content) if fits else 0)
        complete = received >= state["total_bytes"]
        if complete:
            self._maskfield_uploads.pop(message.transfer_uuid, None)
        wrong_end = complete and (received != state["total_bytes"] or len(state["parts"]) + 1 != state["part_count"])
        if not fits or wrong_end:
            self._maskfield_uploads.pop(message.transfer_uuid, None)
            self._current_file_upload_states.pop(message.transfer_uuid, None)
            return
        part(self, client_id, message)

    def create(self: Any, value: Any, message: Any, is_button: bool = False) -> Any:
        handle = made(self, value, message, is_button)
        state: Any = handle._impl
        state.maskfield_limits = message
        return handle

    GuiApi.__init__ = init
    GuiApi._create_gui_input = create
    GuiApi._handle_gui_updates = handle_updates
    GuiApi._handle_file_transfer_start = handle_start
    GuiApi._handle_file_transfer_part = handle_part
    setattr(GuiApi, _MARK, True)


def believable(state: Any, handle: Any, value: Any) -> bool:
    """Whether a widget's client could have sent this value.

    Args:
        state: viser's state of the widget, with its present ``value``; ``maskfield_limits`` is the message that made
            the widget, with ``min``, ``max`` and ``options`` where it has them.
        handle: the widget, with its present ``options`` where they can change.
        value: what was sent.
    """
    present = state.value
    limits = getattr(state, "maskfield_limits", None)
    options = getattr(handle, "options", getattr(limits, "options", None))
    if options is not None:
        return isinstance(value, str) and value in options
    if state.is_button:
        return isinstance(value, bool)
    if isinstance(present, bool):
        return isinstance(value, bool)
    if isinstance(present, str):
        return isinstance(value, str) and len(value) <= MAX_TEXT
    low, high = (getattr(limits, name, None) for name in ("min", "max"))
    if isinstance(present, (int, float)):
        return _number(value, low, high)
    if isinstance(present, tuple):
        if not isinstance(value, (list, tuple)) or len(value) != len(present):
            return False
        colors = all(isinstance(v, int) for v in present) and len(present) in (3, 4) and low is None
        if colors:
            return all(_number(v, 0, 255) for v in value)
        lows = low if isinstance(low, (list, tuple)) else [low] * len(value)
        highs = high if isinstance(high, (list, tuple)) else [high] * len(value)
        return all(_number(v, a, b) for v, a, b in zip(value, lows, highs, strict=False))
    return False


def _number(value: Any, low: Any, high: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) > 1e12:
        return False
    return (low is None or value >= low) and (high is None or value <= high)


# --- nerfstudio's viewer ----------------------------------------------------------------------------------------------


def _is_ours(pipeline: Any) -> bool:
    """Whether a pipeline holds one of this package's models."""
    return type(getattr(pipeline, "model", None)).__module__.split(".")[0] == "maskfield_ns"


def guard_render_threads() -> None:
    """Keeps the picture coming: an image that fails to render is said in a line, and its size has a bound.

    nerfstudio 1.1.5 lets the thread of a client die at the first exception; the page then stands still for ever.
    Concerns viewers of this package's models.
    """
    from nerfstudio.viewer.render_state_machine import RenderStateMachine, viewer_utils

    interrupted = viewer_utils.IOChangeException
    if getattr(RenderStateMachine, _MARK, False):
        return
    render, send = RenderStateMachine._render_img, RenderStateMachine._send_output_to_viewer
    size = RenderStateMachine._calculate_image_res

    def said(self: Any, error: Exception) -> None:
        line = f"viewer: an image could not be drawn ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        if getattr(self, "_maskfield_said", None) != line:  # the same line once, not thirty times a second
            self._maskfield_said = line
            CONSOLE.print(line)

    def render_img(self: Any, camera_state: Any) -> Any:
        if not _is_ours(self.viewer.pipeline):
            return render(self, camera_state)
        try:
            return render(self, camera_state)
        except interrupted:
            raise
        except Exception as error:
            said(self, error)
            raise interrupted from error  # for nerfstudio: nothing to show, go on

    def send_output(self: Any, outputs: Any, *args: Any, **kwargs: Any) -> None:
        if not _is_ours(self.viewer.pipeline):
            return send(self, outputs, *args, **kwargs)
        try:
            send(self, outputs, *args, **kwargs)
        except Exception as error:
            said(self, error)

    def image_size(self: Any, aspect_ratio: float) -> tuple[int, int]:
        aspect = aspect_ratio if math.isfinite(aspect_ratio) and 0.02 < aspect_ratio < 50 else 1.0
        height, width = (max(1, int(value)) for value in size(self, aspect))
        shrink = min(1.0, math.sqrt(MAX_IMAGE_PIXELS / (height * width)))
        return max(1, int(height * shrink)), max(1, int(width * shrink))

    RenderStateMachine._render_img = render_img
    RenderStateMachine._send_output_to_viewer = send_output
    RenderStateMachine._calculate_image_res = image_size
    setattr(RenderStateMachine, _MARK, True)


def keep_to_ourselves() -> None:
    """The page's share button opens no tunnel, and the title bar loads no picture from elsewhere.

    A tunnel hands the viewer to whoever has its address; ``--viewer.make-share-url True`` asks for it. In a viewer of a
    finished run, what belongs to training (pause, camera frusta of the training images) is out of sight at first.
    Concerns viewers of this package's models.
    """
    from nerfstudio.viewer.viewer import Viewer
    from viser import _messages, theme

    if getattr(Viewer, "_maskfield_keeps", False):
        return
    original, scene = Viewer.__init__, Viewer.init_scene

    @functools.wraps(original)
    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, config, *args, **kwargs)
        if not _is_ours(self.pipeline):
            return
        server = self.viser_server
        wanted = bool(config.make_share_url)
        if not wanted:
            for message in (_messages.ShareUrlRequest, _messages.ShareUrlDisconnect):
                server._websock_server._incoming_handlers.pop(message, None)
        links = (theme.TitlebarButton(text="nerfstudio", icon=None, href="https://docs.nerf.studio"),)
        server.gui.configure_theme(
            titlebar_content=theme.TitlebarConfig(buttons=links, image=None),
            control_layout="collapsible",
            dark_mode=True,
            show_share_button=wanted,
            brand_color=(255, 211, 105),
        )
        if self.trainer is None:
            self.pause_train.visible = self.resume_train.visible = False

    @functools.wraps(scene)
    def init_scene(self: Any, *args: Any, **kwargs: Any) -> None:
        scene(self, *args, **kwargs)
        if self.trainer is None and _is_ours(self.pipeline):
            self.set_camera_visibility(False)
            self.hide_images.visible, self.show_images.visible = False, True

    # keep_viewer_local (compat.py) may have wrapped it before: its mark has to stay visible.
    Viewer.__init__, Viewer.init_scene = init, init_scene
    Viewer._maskfield_keeps = True  # pyright: ignore[reportAttributeAccessIssue]


def look_past_ended_processes() -> None:
    """Starts the viewer also where another process ends at that moment.

    viser 0.2.7 looks through all processes for a development server of its page and stumbles over one that has just
    ended (psutil.NoSuchProcess).
    """
    from viser import _client_autobuild as module

    autobuild: Any = module  # names that viser does not export
    original = autobuild._check_viser_yarn_running
    if getattr(original, _MARK, False):
        return

    def check() -> bool:
        import psutil  # as viser does, when a viewer starts

        try:
            return original()
        except psutil.Error:
            return False

    setattr(check, _MARK, True)
    autobuild._check_viser_yarn_running = check


def alive_render_threads() -> int:
    """Render threads of clients in this process, for tests and campaigns."""
    from nerfstudio.viewer.render_state_machine import RenderStateMachine

    return sum(isinstance(thread, RenderStateMachine) for thread in threading.enumerate())

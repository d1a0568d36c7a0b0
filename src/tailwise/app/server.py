"""`create_app()`: a workspace to an ASGI app; `serve()`: the app behind an address."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from types import FrameType

import anyio.to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from tailwise.app import api
from tailwise.app.bodies import BUSY
from tailwise.app.guard import Guard, Rate, new_proof
from tailwise.app.jobs.queue import Queue
from tailwise.app.large_answers import LargeAnswers
from tailwise.app.overviews import Overviews
from tailwise.app.page_context import PageContext
from tailwise.app.pages import assistant, compare, evaluations, files, help, jobs, login, models, plans, training  # noqa: A004 - a module
from tailwise.app.rendering import Pages, static
from tailwise.app.settings import AppSettings
from tailwise.app.tags import Tags
from tailwise.app.workspace.workspace import Workspace
from tailwise.core.errors import TailwiseError, UnknownNameError, UnreachableError, UsageError
from tailwise.core.storage import is_limited
from tailwise.report.charts.chart import require_altair
from tailwise.report.shell import asset, bundle

#: Pages made at once. Python runs one thread at a time, so more of them only wait for each other, and out of turn.
_THREADS = 8
_LOGINS = 10  # tries a minute
_QUESTIONS = 60
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


def create_app(workspace: Workspace, settings: AppSettings) -> FastAPI:
    """The whole app. The queue of audits works as long as it is served."""
    require_altair()
    from tailwise import __version__

    proof = new_proof()
    pages = Pages(proof=proof, version=__version__, read_only=settings.read_only)
    queue = Queue(
        settings.state, longest=settings.longest_queue, workers=settings.workers, idle=settings.read_only
    )  # fmt: skip
    context = PageContext(
        workspace, settings, pages, Overviews(workspace, settings.state), Tags(settings.state), queue, Rate(_LOGINS),
        Rate(settings.starts_per_minute), Rate(_QUESTIONS),
    )  # fmt: skip

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        if not settings.read_only:
            queue.open()
        # Vega takes seconds to be put together, which the first chart should not wait for.
        threading.Thread(target=_file, args=("vega.js",), name="tailwise-vega", daemon=True).start()
        yield
        queue.close()
        workspace.close()

    app = FastAPI(
        title="tailwise", version=__version__, lifespan=alive, openapi_url="/api/openapi.json", docs_url=None,
        redoc_url=None,
    )  # fmt: skip
    app.state.context = context
    for module in (api, models, compare, evaluations, files, training, plans, jobs, help, login, assistant):
        app.include_router(module.router)
    app.add_api_route("/static/{name}", _static, include_in_schema=False)
    _add_handlers(app)
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=4)
    app.add_middleware(LargeAnswers)
    app.add_middleware(Guard, settings=settings, proof=proof)
    return app


def serve(workspace: Workspace, settings: AppSettings) -> None:
    """Serve until interrupted."""
    import uvicorn

    from tailwise.app.patience import Patient

    _check_room()
    app = create_app(workspace, settings)
    ending: threading.Event = app.state.context.ending

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            ending.set()  # streams without end look at it; nothing else would end them in time
            super().handle_exit(sig, frame)

    server = Server(
        uvicorn.Config(
            app, host=settings.host, port=settings.port, log_level="warning", server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=3, http=Patient,
        )
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):  # the server has heard it, and raises it again when it is done
        server.run()


def _check_room() -> None:
    """`UsageError` under a limit of addresses that leaves no room to put the script of charts together.

    Its JavaScript engine reserves gigabytes, and ends the process where it cannot: so a process of its own tries it.
    """
    if not is_limited():
        return
    code = "from tailwise.report.shell import bundle; bundle()"
    tried = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=False)
    if tried.returncode != 0:
        raise UsageError(
            "the limit of addresses leaves no room for the engine that charts are put together by, which reserves many "
            "gigabytes and uses few",
            fix="raise it (`ulimit -v unlimited`) and limit the memory itself, as systemd's MemoryMax does",
        )


# Files that pages load. Not Starlette's StaticFiles: the largest of them, Vega, is put together in memory, and would be
# compressed again for every request (32 ms).


@lru_cache(maxsize=32)
def _file(name: str) -> tuple[bytes, bytes, str]:
    """Bytes, the same compressed, and what changes with them."""
    if name == "vega.js":
        data = bundle().encode()
    elif name in ("figures.js", "report.css"):
        data = asset(name).encode()
    else:
        data = static(name)
    return data, gzip.compress(data, 6, mtime=0), hashlib.sha256(data).hexdigest()[:16]


_FILES = ("vega.js", "figures.js", "report.css", "app.css", "app.js", "htmx.min.js", "icon.svg")


def _static(request: Request, name: str) -> Response:
    if name not in _FILES:
        raise HTTPException(404)
    data, packed, tag = _file(name)
    headers = {"etag": f'"{tag}"', "cache-control": "no-cache", "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        data = packed
        headers["content-encoding"] = "gzip"
    return Response(data, media_type=_TYPES[name[name.rindex(".") :]], headers=headers)


# What goes wrong


def _add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(TailwiseError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unforeseen)


def _problem(request: Request, status: int, what: str, where: object = None, fix: str | None = None) -> Response:
    if request.url.path.startswith("/api/"):
        shown = None if where is None else str(where)
        return JSONResponse({"error": what, "where": shown, "fix": fix}, status)
    context: PageContext = request.app.state.context
    values = {"status": status, "what": what, "where": where, "fix": fix}
    if request.headers.get("hx-request") != "true":
        return context.pages.page(request, "problem.html", values, status)
    response = context.pages.part(request, "problem.html", "problem", values, status)
    response.headers["hx-retarget"], response.headers["hx-reswap"] = "#problem", "innerHTML"
    return response


def _told(request: Request, error: Exception) -> Response:
    if not isinstance(error, TailwiseError):
        raise error
    status = 404 if isinstance(error, UnknownNameError) else 400 if isinstance(error, UsageError) else 422
    if isinstance(error, UnreachableError):
        status = 503
    return _problem(request, status, error.what, error.where, error.fix)


def _invalid(request: Request, error: Exception) -> Response:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    if request.url.path.startswith("/api/"):
        detail = [{"loc": list(item["loc"]), "msg": str(item["msg"]), "type": str(item["type"])} for item in problems]
        return JSONResponse({"detail": detail}, 422)
    message = "; ".join(f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in problems[:5])
    return _problem(request, 400, f"the address asks for something that cannot be: {message}")


def _http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    messages = {404: "there is no such page", 408: "the request did not come to its end in time",
                405: "this address does not take that method",
                413: "the request is larger than what is taken here", 429: "too many tries: wait a minute",
                503: BUSY}.get(status, "refused")  # fmt: skip
    response = _problem(request, status, messages)
    for name, value in (headers or {}).items():
        response.headers[name] = value
    return response


def _unforeseen(request: Request, error: Exception) -> Response:  # noqa: ARG001 - uvicorn logs it
    return _problem(request, 500, "something went wrong here; the server's log says more")

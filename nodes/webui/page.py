"""The WebUI as a host of the page: its folders, its password, its language, its loaded model in the order of its queue."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from ...lora_core.events import Control
from ...lora_core.messages.message import LANGUAGES
from ..jobs.publishing import Shelf
from ..page.desk import Desk
from ..page.host import Loan
from ..page.pictures import pictures_root
from ..page.works import WORKS
from .engine.host import checkpoints, data_root, embeddings_folder, loras_folder, models_folder, refresh_lists, version
from .engine.lent import lent_model
from .turns import Courtesy, turn

BASIC = HTTPBasic(auto_error=False)
GIVEN = Depends(BASIC)
SHARED = ("listen", "share", "ngrok", "server_name", "hide_ui_dir_config")  # with these others see the page


class WebuiHost:
    """Fulfils page.host.Host."""

    base = "webui"

    def data_root(self) -> Path:
        return data_root()

    def shelf(self) -> Shelf:
        return Shelf(loras_folder(), embeddings_folder())

    def bases(self) -> Sequence[str]:
        return ()

    def checkpoints(self) -> Mapping[str, Path]:
        return checkpoints()

    def model_folders(self) -> Sequence[Path]:
        return [models_folder()]

    def version(self) -> str:
        return version()

    def language(self) -> str:
        """That of the host's page, where we speak it."""
        from modules import shared

        chosen = str(getattr(shared.opts, "localization", "") or "").lower()
        return next((name for name in LANGUAGES if chosen.startswith(name)), LANGUAGES[0])

    def refresh_lists(self) -> None:
        refresh_lists()

    def may_edit(self, folder: Path) -> bool:
        """Dropped pictures; other folders where no stranger sees the page."""
        from modules import shared

        options = shared.cmd_opts
        open_to_others = any(getattr(options, name, None) for name in SHARED)
        dropped = folder.resolve().is_relative_to(pictures_root(data_root()).resolve())
        return dropped or not open_to_others or bool(options.gradio_auth or options.gradio_auth_path)

    @contextlib.contextmanager
    def lent(self, task: str, settings: Mapping[str, Any], control: Control) -> Iterator[Loan]:
        with turn(task), torch.inference_mode(False), torch.enable_grad():
            lent = lent_model()
            yield Loan(lent.backend, lent.settled, [Courtesy(lent.given_back, control)])

    def guards(self) -> Sequence[Any]:
        """A name and password with --api-auth, a login with --gradio-auth (either will do where both are on), or nothing."""
        from modules import shared

        options = shared.cmd_opts
        accepted = dict(pair.split(":", 1) for pair in (options.api_auth or "").split(",") if ":" in pair)
        login = bool(options.gradio_auth or options.gradio_auth_path)
        if not accepted and not login:
            return []

        def known(request: Request, credentials: HTTPBasicCredentials | None = GIVEN) -> None:
            password = accepted.get(credentials.username) if credentials is not None else None
            typed = credentials.password if credentials is not None else ""
            if password is not None and secrets.compare_digest(typed.encode(), password.encode()):
                return
            if login and _logged_in(request):
                return
            raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Basic"} if accepted else None)

        return [Depends(known)]


def _logged_in(request: Request) -> bool:
    """By the cookie that the host's page sets."""
    tokens = getattr(request.app, "tokens", None) or {}
    return any(value in tokens for name, value in request.cookies.items() if name.startswith("access-token"))


DESK = Desk(WebuiHost(), WORKS)  # outlives Reload UI, as do the jobs on it

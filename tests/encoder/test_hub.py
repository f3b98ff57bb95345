"""Without the hub: a model that was downloaded before is taken from disk, any other is one sentence, at once."""

from __future__ import annotations

import socket

import pytest
from huggingface_hub import constants

from tinyhat.encoder import hub
from tinyhat.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for variable in hub.PROXIES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.hub_answers.cache_clear()
    yield tmp_path
    hub.hub_answers.cache_clear()


def test_a_hub_that_answers_is_asked_by_name(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.hub_source("owner/model") == "owner/model"


def test_without_the_hub_an_earlier_download_is_used_and_anything_else_is_a_sentence(cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # closed again: nobody listens there
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"'minilmm' is not on this machine and .* did you mean 'minilm'"):
        hub.hub_source("minilmm")
    snapshot = cache / "models--owner--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (cache / "models--owner--model" / "refs").mkdir()
    (cache / "models--owner--model" / "refs" / "main").write_text("0" * 40)
    assert hub.hub_source("owner/model") == snapshot


def test_offline_mode_asks_nobody(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("a connection was opened"))
    assert not hub.hub_answers()

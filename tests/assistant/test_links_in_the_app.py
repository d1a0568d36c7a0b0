"""Every page that an answer links to is there."""

import pytest

from tailwise.app.assistant.answers import answer
from tailwise.app.assistant.functions.function import FUNCTIONS, Place, call
from tailwise.app.assistant.markdown import links_in
from tailwise.app.assistant.replies.concepts import EXAMPLES
from tailwise.app.workspace.workspace import Workspace

pytest.importorskip("fastapi")


@pytest.fixture
def client(made, tmp_path):
    from starlette.testclient import TestClient

    from tailwise.app.server import create_app
    from tailwise.app.settings import AppSettings

    workspace = Workspace(made.workspace.roots, store=made.workspace.store)  # the app closes its own
    app = create_app(workspace, AppSettings(state=tmp_path, read_only=True))
    with TestClient(app, base_url="http://127.0.0.1:8440") as found:
        yield found


def test_links_of_answers_and_facts_lead_somewhere(made, client):
    pages = set()
    for title in ("model", "odd/<b>*x*"):
        screen = made.screen(title, base=made.ids["tuned"], chart="alpha_hist")
        for question in EXAMPLES:
            pages |= {link.href for link in answer(question, made.workspace, screen).links}
        place = Place(made.workspace, screen)
        facts = [call(name, {"topic": "TW101"} if name == "explain" else {}, place) for name in FUNCTIONS]
        pages |= {link.href for link in links_in(facts)}
    assert len(pages) > 30
    assert {href: status for href in pages if (status := client.get(href).status_code) != 200} == {}

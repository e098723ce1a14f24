"""What the guard lets through: hosts, origins, sizes, tokens, marks of forms, paths."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from polyloom.web import Settings, create_app
from polyloom.web.pages.access import local_path
from polyloom.web.security import confined, csrf_token, host_allowed, session_key
from tests.web.conftest import BASE_URL
from tests.web.runs_for_tests import HOSTILE, hostile_run, make_run

FORM = {"content-type": "application/x-www-form-urlencoded"}


def opened(tmp_path: Path, **given: object) -> TestClient:
    settings = Settings(**{"runs": tmp_path / "runs", **given})  # type: ignore[arg-type]
    return TestClient(create_app(settings), base_url=BASE_URL, follow_redirects=False)


@pytest.mark.parametrize("path", ["/", "/runs", "/no-such-page", "/static/studio.css", "/static/report.css", "/login"])
def test_every_answer_carries_the_policies(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


def test_no_page_has_inline_scripts_styles_or_handlers(client, tmp_path):
    hostile_run(tmp_path / "runs")
    for path in ("/", "/runs", "/runs/hostile", "/rooms/silu", "/start/silu/study", "/compare", "/login"):
        text = client.get(path).text
        for tag in text.split("<script")[1:]:
            assert " src=" in tag.split(">")[0]
            assert tag.split(">")[1].startswith("</script")
        assert "<style" not in text
        assert " style=" not in text
        assert " onclick=" not in text


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil", "[::1", "169.254.1.1"]
)
def test_names_that_are_not_this_servers_are_refused(client, host):
    assert client.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1:8321", "localhost:1", "[::1]:8321", "LOCALHOST"])
def test_names_of_loopback_are_served(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


def test_bound_to_every_address_only_addresses_are_served():
    settings = Settings(runs=Path("r"), host="0.0.0.0")
    assert host_allowed("192.168.1.7:80", settings)
    assert not host_allowed("rebound.example", settings)
    assert host_allowed("box.local", Settings(runs=Path("r"), host="box.local"))


def test_a_write_needs_the_mark_of_its_session(client, tmp_path):
    make_run(tmp_path / "runs", "a")
    client.get("/")
    session = client.cookies["polyloom_session"]
    secret = (tmp_path / "runs" / ".studio" / "secret").read_text().strip()
    mark = csrf_token(secret, session)
    other = csrf_token(secret, "x" * 43)
    for headers, data in (({}, {}), ({}, {"csrf": "x"}), ({"x-csrf-token": other}, {})):
        assert client.post("/runs/a/delete", headers=headers, data=data).status_code == 403
    assert (tmp_path / "runs" / "a").exists()
    assert client.post("/runs/a/delete", headers={"x-csrf-token": mark}).status_code == 303
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_write_from_another_site_is_refused_whatever_it_knows(client, headers):
    mark = client.get("/").text.split('X-CSRF-Token": "')[1].split('"')[0]
    response = client.post("/logout", headers={**headers, "x-csrf-token": mark})
    assert response.status_code == 403
    assert client.post("/logout", headers={"origin": BASE_URL, "x-csrf-token": mark}).status_code == 303


def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(client):
    cookie = client.get("/").headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "set-cookie" not in client.get("/").headers


def test_pages_stay_valid_over_a_restart(tmp_path):
    first = opened(tmp_path)
    mark = first.get("/").text.split('X-CSRF-Token": "')[1].split('"')[0]
    second = opened(tmp_path)
    second.cookies = first.cookies
    assert second.post("/logout", data={"csrf": mark}).status_code == 303
    assert oct((tmp_path / "runs" / ".studio" / "secret").stat().st_mode)[-3:] == "600"


def test_long_bodies_are_refused_with_and_without_their_length(tmp_path):
    client = opened(tmp_path, max_body_bytes=2000)
    client.get("/")
    assert client.post("/logout", data={"csrf": "x" * 3000}).status_code == 413
    chunks = (b"csrf=" + b"x" * 500 for _ in range(10))
    assert client.post("/logout", content=chunks, headers=FORM).status_code == 413
    assert client.post("/logout", content=b"", headers={**FORM, "content-length": "-5"}).status_code == 413


def test_without_the_token_nothing_is_seen_and_with_it_everything(tmp_path):
    make_run(tmp_path / "runs", "a")
    client = opened(tmp_path, token="open sesame")
    browser = {"accept": "text/html"}
    for path in ("/", "/runs", "/runs/a", "/files/a/result.json", "/events", "/no-such"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers=browser).headers["location"] == "/login"
    assert client.get("/static/studio.css").status_code == 200
    mark = client.get("/login").text.split('X-CSRF-Token": "')[1].split('"')[0]
    assert client.post("/login", data={"csrf": mark, "token": "é wrong"}).status_code == 403
    assert client.get("/").status_code == 401
    done = client.post("/login", data={"csrf": mark, "token": " open sesame "})
    assert done.status_code == 303
    assert "HttpOnly" in done.headers["set-cookie"]
    assert "samesite=strict" in done.headers["set-cookie"].lower()
    assert "open sesame" not in done.headers["set-cookie"]
    assert client.get("/runs/a").status_code == 200
    client.post("/logout", data={"csrf": mark})
    assert client.get("/").status_code == 401


def test_a_key_of_another_session_or_token_is_none(tmp_path):
    client = opened(tmp_path, token="t")
    client.get("/login")
    session = client.cookies["polyloom_session"]
    for key in (session_key("t", "x" * 43), session_key("u", session), "x"):
        header = f"polyloom_session={session}; polyloom_key_8321={key}"
        assert client.get("/", headers={"cookie": header}).status_code == 401
    header = f"polyloom_session={session}; polyloom_key_8321={session_key('t', session)}"
    assert client.get("/", headers={"cookie": header}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/files/a/../../secret.txt",
        "/files/a/%2e%2e/%2e%2e/secret.txt",
        "/files/a/..%2f..%2fsecret.txt",
        "/files/a//etc/passwd",
        "/files/a/artifacts/link.txt",
        "/files/a/artifacts/folder/secret.txt",
        "/files/a/.lock",
        "/files/a/artifacts/.hidden",
        "/files/a/%00",
        "/files/../index.sqlite3",
        "/files/.studio/secret",
        "/files/%2e/index.sqlite3",
        "/runs/.studio",
        "/runs/%2e%2e%2fa",
        "/runs/a%00b",
        "/runs/a/tables/no-such.csv",
        "/start/silu/..%2ffacts",
        "/start/no-such/study",
        "/rooms/__init__",
    ],
)
def test_no_path_leads_out_of_the_runs_folder(client, tmp_path, path):
    run = make_run(tmp_path / "runs", "a")
    (tmp_path / "secret.txt").write_text("secret")
    (run.path / ".lock").write_text("1")
    run.artifact(".hidden").write_text("secret")
    (run.path / "artifacts" / "link.txt").symlink_to(tmp_path / "secret.txt")
    (run.path / "artifacts" / "folder").symlink_to(tmp_path)
    response = client.get(path)
    assert response.status_code in (404, 405)
    assert "secret" not in response.text.replace("/secret", "")


@given(st.lists(st.text(max_size=12) | st.sampled_from(["..", ".", "/", "/etc", "a", "~"]), max_size=6))
def test_a_confined_path_is_below_its_root_or_refused(parts):
    root = Path(__file__).parent
    with suppress(HTTPException):
        assert root.resolve() in confined(root, *parts).parents


@pytest.mark.parametrize(
    "target", ["//evil", "http://evil", "/\\evil", "\\evil", "/a\r\nSet-Cookie: x=y", "/é", "", "/" + "a" * 3000]
)
def test_nobody_is_sent_elsewhere(client, target):
    assert local_path(target) == "/"
    response = client.get("/language/zh", params={"next": target})
    assert response.headers["location"] == "/"
    assert "x=y" not in str(response.headers)


def test_hostile_texts_of_a_run_are_words_on_every_page(client, tmp_path):
    hostile_run(tmp_path / "runs")
    for path in (
        "/",
        "/runs",
        "/runs/hostile",
        "/runs/hostile/report",
        "/compare?run=hostile&run=hostile",
        "/rooms/silu",
    ):
        response = client.get(path)
        assert response.status_code == 200
        assert "<script>alert" not in response.text
        assert "<img src=x" not in response.text
        assert "onerror=alert(2)&gt;" in response.text or path in ("/runs/hostile/report", "/rooms/silu")
        assert "\0" not in response.text
        assert "49" not in response.text.split("{{7")[0][-1:]


def test_hostile_texts_of_a_request_are_words(client, post):
    for path in ("/runs", "/runs/x", "/start/silu/study", "/compare", "/no-such"):
        response = client.get(
            path, params={"q": HOSTILE, "room": HOSTILE, "status": HOSTILE, "like": HOSTILE, "run": HOSTILE}
        )
        assert response.status_code in (200, 404, 422)
        assert "<script>alert" not in response.text
    response = post("/start/silu/facts", activation=HOSTILE, seed=HOSTILE)
    assert response.status_code == 422
    assert "<script>alert" not in response.text
    assert "&lt;script&gt;alert" in response.text


def test_files_of_runs_have_an_origin_of_their_own_and_unknown_kinds_are_handed_over(client, tmp_path):
    hostile_run(tmp_path / "runs")
    page = client.get("/files/hostile/artifacts/page.html")
    assert page.headers["content-security-policy"].endswith("sandbox")
    assert "script-src" not in page.headers["content-security-policy"]
    code = client.get("/files/hostile/artifacts/code.js")
    assert code.headers["content-disposition"].startswith("attachment")
    assert client.get("/files/hostile/result.json").headers["content-type"].startswith("text/plain")


def test_spreadsheets_take_no_formula_from_a_table(client, tmp_path):
    make_run(tmp_path / "runs", "a")
    hostile_run(tmp_path / "runs")
    from urllib.parse import quote

    from polyloom.core.result import read_result

    table = next(iter(read_result(tmp_path / "runs" / "hostile" / "result.json").tables))
    response = client.get(f"/runs/hostile/tables/{quote(table, safe='')}.csv")
    if response.status_code == 200:
        assert "'=1+1" in response.text
    else:
        assert response.status_code == 404


def test_secrets_are_not_world_readable(tmp_path):
    opened(tmp_path)
    mode = os.stat(tmp_path / "runs" / ".studio" / "secret").st_mode
    assert mode & 0o077 == 0

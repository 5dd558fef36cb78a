"""What other programs say is shown without their secrets, and what is shown is one line."""

import pytest
from lora_loom.lora_core.messages.errors import LoomError, message_of, reason_of
from lora_loom.lora_core.messages.message import LANGUAGES, Message
from lora_loom.lora_core.messages.secrets import in_one_line, without_secrets

SECRET = "a1B2c3D4e5F6g7H8"


@pytest.mark.parametrize(
    "text",
    [
        f"401 Client Error: hf_{SECRET} is not valid",
        f"Authorization: Bearer {SECRET}",
        f"headers={{'authorization': 'Bearer {SECRET}', 'x': '1'}}",
        f"https://user:{SECRET}@huggingface.co/x",
        f"https://{SECRET}@huggingface.co/x",
        f"GET https://cdn.example/x?X-Amz-Signature={SECRET}&X-Amz-Security-Token={SECRET}&Policy={SECRET}~ failed",
        f'{{"access_token": "{SECRET}", "password":"{SECRET}"}}',
        f"api_key={SECRET} api-key: {SECRET}",
        f"api_org_{SECRET}",
        f"ghp_{SECRET} github_pat_{SECRET} sk-{SECRET}",
        f"wandb: the key {SECRET} was refused",  # of the environment
    ],
)
def test_a_secret_in_a_foreign_answer_is_never_shown(text, monkeypatch):
    if "wandb" in text:  # the other rows are told by how they look alone
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert SECRET not in without_secrets(text)
    for error in (ValueError(text), OSError(text), RuntimeError(f"\n\n{text}\nmore")):
        assert SECRET not in reason_of(error)
        assert SECRET not in str(message_of(error))


@pytest.mark.parametrize(
    "text",
    [
        "could not read hf_hub_download of tokenizer.json",
        "The token 'zog' is known",
        "10 tokens: too many",
        "https://huggingface.co/a/b/resolve/main/x.safetensors was not found",
        "the policy of the site",
    ],
)
def test_what_is_no_secret_stays(text):
    assert without_secrets(text) == text


def test_a_reason_is_one_short_line_whatever_the_error_says():
    assert reason_of(ValueError("")) == "ValueError"
    assert reason_of(ValueError("\n \n  first \nsecond")) == "first"
    assert reason_of(OSError(28, "No space left on device")) == "No space left on device"
    assert len(reason_of(ValueError("x" * 10**6))) == 200
    ours = LoomError("run.stopped_first")
    ours.__cause__ = OSError(28, "No space left on device", "/secret/place")
    assert reason_of(ours) == "No space left on device"


def test_the_reason_of_an_error_of_ours_is_its_message_without_secrets():
    inside = LoomError("pattern.costly", field="blocks", pattern=f"hf_{SECRET}", reason=Message.of("pattern.slow"))
    reason = reason_of(LoomError("picture.of", name="a.png", error=inside))
    told = Message.of("extra.failed", name="result.png", reason=reason)
    for language in LANGUAGES:
        assert SECRET not in told.text(language)
        assert Message.of("pattern.slow").text(language) in told.text(language)


def test_a_name_with_line_breaks_or_controls_cannot_forge_a_line():
    name = "a\n2026-01-01 00:00:00.000 finished after step 9\r\x1b[2J\u2028\u202egnp.exe\x00\ud800"
    line = str(Message.of("extra.failed", name=name, reason="x"))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert "a\\n2026" in line
    assert in_one_line("猫 Бум é 😀 ok") == "猫 Бум é 😀 ok"


def test_a_forged_line_reaches_no_log(tmp_path):
    from lora_loom.lora_core.runs.old_log import ending
    from lora_loom.lora_core.runs.reports import FileLog

    with FileLog(tmp_path / "run.log") as log:
        log._write("picture a\n2026-01-01 00:00:00.000 finished after step 9\n is small")
    assert len((tmp_path / "run.log").read_text().splitlines()) == 1
    assert ending(tmp_path / "run.log").outcome == "running"

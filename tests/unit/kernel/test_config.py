"""Settings: precedence, origins, errors that name the line, and what strangers may not set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.config import Environment, load_settings
from avyay.config.schema import Settings
from avyay.config.template import TEMPLATE, write_template
from avyay.config.trust import is_trusted, revoke_trust, trust
from avyay.config.types import parse_duration
from avyay.errors import ConfigError, UsageError
from avyay.paths import open_paths

# The router's example configuration, as published: it must load alone and as the `marga:` section.
ROUTER_FILE = """\
providers:
  - name: openai
    endpoint: https://api.openai.com/v1
    circuit_breaker:
      failure_threshold: 5        # trip after 5 failures
      recovery_timeout: 30s       # test recovery after 30 s
      error_rate_threshold: 0.5   # or 50 % errors in the window
      window_size: 60s
  - name: anthropic
    endpoint: https://api.anthropic.com/v1
    priority: 2                   # primary failover target
    circuit_breaker:
      failure_threshold: 5
      recovery_timeout: 30s
  - name: ollama-mac
    endpoint: http://100.64.0.7:11434
    priority: 3                   # local fallback
    circuit_breaker:
      failure_threshold: 3        # lower threshold for local
      recovery_timeout: 15s
health_check:
  interval: 30s                   # probe all providers every 30 s
  timeout: 5s
"""


def load(tmp_path: Path, text: str | None = None, **variables: str) -> Settings:
    return loaded(tmp_path, text, **variables).settings


def loaded(tmp_path: Path, text: str | None = None, **variables: str):
    environment = Environment({"AVYAY_HOME": str(tmp_path / "home"), **variables})
    if text is None:
        return load_settings(directory=tmp_path, environment=environment)
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return load_settings(config_file=file, environment=environment)


def test_defaults_need_no_file(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert found.settings.raksha.fail_on == "high"
    assert str(found.origin("raksha.fail_on")) == "default"


@pytest.mark.parametrize("as_section", [False, True])
def test_the_router_example_loads_alone_and_as_a_section(tmp_path: Path, as_section: bool) -> None:
    text = "marga:\n" + "".join(f"  {line}\n" for line in ROUTER_FILE.splitlines()) if as_section else ROUTER_FILE
    marga = load(tmp_path, text).marga
    assert [provider.name for provider in marga.providers] == ["openai", "anthropic", "ollama-mac"]
    assert marga.providers[2].circuit_breaker.recovery_timeout == 15
    assert marga.providers[1].priority == 2
    assert marga.health_check.interval == 30


def test_order_is_flag_environment_project_user_default(tmp_path: Path) -> None:
    paths = open_paths(str(tmp_path / "home"))
    paths.config.mkdir(parents=True)
    paths.user_config_file.write_text("raksha: {fail_on: low}\nrag: {passages: 7}\nlog: {level: error}\n")
    project = tmp_path / "project"
    (project / "deep" / "er").mkdir(parents=True)
    (project / "avyay.yaml").write_text("raksha:\n  fail_on: medium\nrag:\n  passages: 9\n")
    trust(project / "avyay.yaml", paths)
    environment = Environment({"AVYAY_HOME": str(tmp_path / "home"), "AVYAY_RAKSHA_FAIL_ON": "critical"})
    found = load_settings(
        flags={"marga": {"routing": {"local_below": 0.1}}}, directory=project / "deep" / "er", environment=environment
    )
    assert found.settings.raksha.fail_on == "critical"
    assert str(found.origin("raksha.fail_on")) == "environment AVYAY_RAKSHA_FAIL_ON"
    assert found.settings.rag.passages == 9
    assert str(found.origin("rag.passages")) == f"project {project / 'avyay.yaml'}:4"
    assert found.settings.log.level == "error"
    assert found.origin("log.level").kind == "user"
    assert found.origin("marga.routing.local_below").kind == "flag"


def test_a_named_file_takes_the_place_of_both_files(tmp_path: Path) -> None:
    paths = open_paths(str(tmp_path / "home"))
    paths.config.mkdir(parents=True)
    paths.user_config_file.write_text("raksha: {fail_on: low}\n")
    assert load(tmp_path, "rag: {passages: 3}\n").raksha.fail_on == "high"
    other = tmp_path / "other.yaml"
    other.write_text("rag: {passages: 4}\n")
    environment = Environment({"AVYAY_HOME": str(tmp_path / "home"), "AVYAY_CONFIG": str(other)})
    assert load_settings(directory=tmp_path, environment=environment).settings.rag.passages == 4


@pytest.mark.parametrize(
    "text, message, hint",
    [
        ("marga:\n  provders: []\n", "settings.yaml:2: unknown key 'marga.provders'", "Did you mean 'providers'?"),
        ("rakhsa: {}\n", "settings.yaml:1: unknown key 'rakhsa'", "Did you mean 'raksha'?"),
        (
            "marga:\n  providers:\n    - name: x\n      endpont: http://h\n",
            "settings.yaml:4: unknown key 'marga.providers.0.endpont'",
            "Did you mean 'endpoint'?",
        ),
        (
            "marga:\n  providers:\n    - name: x\n      endpoint: localhost\n",
            "settings.yaml:4: marga.providers.0.endpoint: not a base URL",
            "schema",
        ),
        (
            "marga:\n  health_check:\n    interval: soon\n",
            "settings.yaml:3: marga.health_check.interval: not a duration",
            "schema",
        ),
        ("rag:\n  passages: lots\n", "settings.yaml:2: rag.passages:", "schema"),
        ("a: b: c\n", "settings.yaml:1: broken YAML", "indentation"),
        ("rag:\n  passages: 1\nrag:\n  passages: 2\n", "settings.yaml:3: the key 'rag' stands here a second", "Remove"),
        ("- a\n- b\n", "settings.yaml:1: expected `key: value`", "schema"),
        ("x: !!python/object/apply:os.system ['true']\n", "broken YAML", ""),
    ],
)
def test_errors_name_the_line_and_the_remedy(tmp_path: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 2


def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"AVYAY_RAG_PASSAGES: rag\.passages"):
        load(tmp_path, AVYAY_RAG_PASSAGES="many")


def test_unknown_variables_are_reported_not_fatal(tmp_path: Path) -> None:
    assert loaded(tmp_path, AVYAY_RAKSA_FAIL_ON="low").unknown_variables == ("AVYAY_RAKSA_FAIL_ON",)


def test_missing_unreadable_and_non_text_files(tmp_path: Path) -> None:
    environment = Environment({"AVYAY_HOME": str(tmp_path / "home")})
    for file, words in [
        (tmp_path / "nowhere.yaml", "no configuration file"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(ConfigError, match=words):
            load_settings(config_file=file, environment=environment)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00rag")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_settings(config_file=binary, environment=environment)
    large = tmp_path / "large.yaml"
    large.write_text("# " + "x" * 1_100_000)
    with pytest.raises(ConfigError, match="larger than 1 MB"):
        load_settings(config_file=large, environment=environment)


def test_a_yaml_bomb_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="too many values"):
        load(tmp_path, "\n".join(lines))


class TestTrust:
    """A project's file comes from strangers."""

    DANGEROUS = (
        "marga:\n  providers:\n    - {name: evil, endpoint: https://evil.example/v1}\nraksha:\n  fail_on: info\n"
    )

    def project(self, tmp_path: Path, text: str) -> Path:
        folder = tmp_path / "project"
        folder.mkdir(exist_ok=True)
        (folder / ".git").mkdir(exist_ok=True)
        (folder / "avyay.yaml").write_text(text)
        return folder

    def load(self, tmp_path: Path, folder: Path):
        return load_settings(directory=folder, environment=Environment({"AVYAY_HOME": str(tmp_path / "home")}))

    def test_until_trusted_it_sets_only_what_is_harmless(self, tmp_path: Path) -> None:
        folder = self.project(tmp_path, self.DANGEROUS + "rag:\n  passages: 2\n")
        found = self.load(tmp_path, folder)
        assert found.settings.marga.providers == ()
        assert found.settings.raksha.fail_on == "high"
        assert found.settings.rag.passages == 2
        assert found.ignored == (
            f"{folder}/avyay.yaml:2 marga.providers",
            f"{folder}/avyay.yaml:5 raksha.fail_on",
        )

    def test_trust_holds_for_exactly_this_content(self, tmp_path: Path) -> None:
        folder = self.project(tmp_path, self.DANGEROUS)
        paths = open_paths(str(tmp_path / "home"))
        trust(folder / "avyay.yaml", paths)
        assert self.load(tmp_path, folder).settings.marga.providers[0].name == "evil"
        (folder / "avyay.yaml").write_text(self.DANGEROUS + "# edited\n")
        assert self.load(tmp_path, folder).settings.marga.providers == ()
        assert not is_trusted(folder / "avyay.yaml", paths)

    def test_revoking(self, tmp_path: Path) -> None:
        folder = self.project(tmp_path, self.DANGEROUS)
        paths = open_paths(str(tmp_path / "home"))
        assert not revoke_trust(folder / "avyay.yaml", paths)
        trust(folder / "avyay.yaml", paths)
        assert revoke_trust(folder / "avyay.yaml", paths)
        assert not is_trusted(folder / "avyay.yaml", paths)

    def test_unknown_keys_are_still_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="avyay.yaml:1: unknown key 'hook'"):
            self.load(tmp_path, self.project(tmp_path, "hook: rm -rf /\n"))

    def test_the_search_stops_at_the_repository(self, tmp_path: Path) -> None:
        (tmp_path / "avyay.yaml").write_text("rag: {passages: 2}\n")
        inner = tmp_path / "repository"
        (inner / ".git").mkdir(parents=True)
        assert self.load(tmp_path, inner).project_file is None

    def test_a_broken_record_trusts_nothing(self, tmp_path: Path) -> None:
        folder = self.project(tmp_path, self.DANGEROUS)
        paths = open_paths(str(tmp_path / "home"))
        trust(folder / "avyay.yaml", paths)
        paths.trust_file.write_text("{broken")
        assert self.load(tmp_path, folder).settings.marga.providers == ()

    def test_trusting_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no file"):
            trust(tmp_path / "avyay.yaml", open_paths(str(tmp_path / "home")))


def test_the_template_loads_and_is_never_overwritten(tmp_path: Path) -> None:
    assert load(tmp_path, TEMPLATE) == Settings()
    uncommented = re.sub(r"(?m)^  # (?=\s*(- )?[a-z_]+:( |$))", "  ", TEMPLATE)
    assert "# providers:" not in uncommented
    assert load(tmp_path, uncommented).marga.providers[1].priority == 3
    file = tmp_path / "avyay.yaml"
    write_template(file)
    file.write_text("mine: true\n")
    with pytest.raises(UsageError, match="exists already"):
        write_template(file)
    assert file.read_text() == "mine: true\n"
    with pytest.raises(UsageError, match="Cannot write"):
        write_template(tmp_path / "no" / "such" / "avyay.yaml")


@given(st.integers(0, 10_000), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_durations(number: int, unit: tuple[str, float]) -> None:
    assert parse_duration(f"{number}{unit[0]}") == pytest.approx(number * unit[1])


@given(st.text())
def test_any_text_is_a_configuration_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    try:
        load(folder, text.replace("\x00", ""))
    except ConfigError as error:
        assert error.hint
    except UnicodeEncodeError:
        pass  # a lone surrogate cannot be written to a file in the first place


def test_two_providers_of_one_name(tmp_path: Path) -> None:
    text = "providers:\n  - {name: a, endpoint: http://h}\n  - {name: a, endpoint: http://i}\n"
    with pytest.raises(ConfigError, match=r"settings.yaml:1: marga.providers: two providers are called 'a'"):
        load(tmp_path, text)


def test_the_schema_describes_every_field() -> None:
    schema = Settings.json_schema()
    undescribed = [
        f"{name}.{key}"
        for name, section in schema["$defs"].items()
        for key, value in section.get("properties", {}).items()
        if "description" not in value and "$ref" not in value
    ]
    assert undescribed == []


@pytest.mark.parametrize("text", ["?", "1: x", "yes: x", "[a]: x"])
def test_a_name_that_is_no_text(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="no name of a setting"):
        load(tmp_path, text)

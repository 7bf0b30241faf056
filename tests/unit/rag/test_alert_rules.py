"""Alert rules beside runbooks: the runbook comes first; a rule is found where no runbook says anything."""

from __future__ import annotations

import pytest

from avyay.rag.service import RagService

from .conftest import Repository

TEXT = "The queue of the mailer has not been drained for ten minutes"
RULES = f"""groups:
- name: mail
  rules:
  - alert: MailQueueStuck
    expr: mail_queue > 100
    annotations: {{description: "{TEXT}"}}
  - alert: MailSpoolFull
    expr: mail_spool > 0.9
    annotations: {{description: "The spool partition of the mailer is nearly full"}}
"""
RUNBOOK = "# Mailer\n\n## Stuck queue\n\nWhen MailQueueStuck fires, flush the mailer queue: `postqueue -f`.\n"


@pytest.fixture
def mail(rag: RagService, repository: Repository) -> RagService:
    repository.write("rules/mail.yml", RULES)
    repository.write("docs/mailer.md", RUNBOOK)
    repository.commit()
    rag.index(str(repository.root))
    return rag


@pytest.mark.parametrize("query", ["MailQueueStuck", TEXT])
def test_the_runbook_comes_before_the_rule(mail: RagService, query: str) -> None:
    found = mail.retrieve(query).found
    assert [one.row.document.path for one in found][:2] == ["docs/mailer.md", "rules/mail.yml"]
    rule = next(one for one in found if one.row.document.path == "rules/mail.yml")
    assert rule.hit.signals["rule"] == 0.5


def test_a_rule_is_found_where_no_runbook_speaks_of_it(mail: RagService) -> None:
    found = mail.retrieve("MailSpoolFull")
    assert found.found[0].row.document.path == "rules/mail.yml"
    assert found.found[0].hit.signals["name"] == 1.0
    assert mail.ask("MailSpoolFull").found


def test_rules_alone_answer(rag: RagService, repository: Repository) -> None:
    repository.write("rules/mail.yml", RULES)
    repository.commit()
    rag.index(str(repository.root), include=("*.yml",))
    assert rag.ask(TEXT).found


def test_a_name_that_a_text_mentions_is_in_the_runbooks(mail: RagService) -> None:
    assert mail.ask("MailQueueStuck").found
    assert not mail.ask("MailQueueLost").found

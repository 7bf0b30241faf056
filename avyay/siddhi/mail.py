"""Sending the message that asks to confirm an address."""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Protocol

from avyay.errors import UnreachableError

__all__ = ["Mailer", "MemoryMailer", "SmtpMailer"]


class Mailer(Protocol):
    """Sends a plain message."""

    def send(self, to: str, subject: str, text: str) -> None:
        """Send, or raise UnreachableError."""
        ...


@dataclass
class MemoryMailer:
    """Keeps messages instead of sending them: for the demo and for tests."""

    sent: list[tuple[str, str, str]] = field(default_factory=list)

    def send(self, to: str, subject: str, text: str) -> None:
        self.sent.append((to, subject, text))


@dataclass(frozen=True)
class SmtpMailer:
    """Any SMTP server; with TLS unless it is on this machine."""

    host: str
    port: int
    sender: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = True
    timeout: float = 15.0

    def send(self, to: str, subject: str, text: str) -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self.sender, to, subject
        message.set_content(text)
        try:
            with smtplib.SMTP(self.host, self.port, timeout=self.timeout) as server:
                if self.tls:
                    server.starttls(context=ssl.create_default_context())
                if self.user is not None:
                    server.login(self.user, self.password or "")
                server.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            raise UnreachableError(
                f"The mail server {self.host} did not take a message ({type(error).__name__}).",
                hint="Check siddhi.mail.",
            ) from error

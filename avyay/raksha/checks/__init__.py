"""The Python checks: what patterns cannot say. One module each; adding one adds its name here."""

CHECKS: tuple[str, ...] = (
    "cors",
    "credentials",
    "emails",
    "get_mutation",
    "shell_injection",
    "sql_injection",
    "url_tokens",
)

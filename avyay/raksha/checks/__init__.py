"""The Python checks: what patterns cannot say. One module each; adding one adds its name here."""

CHECKS: tuple[str, ...] = (
    "admin_routes",
    "cors",
    "credentials",
    "emails",
    "get_mutation",
    "hosts",
    "imports",
    "landing_page",
    "mcp_exposed",
    "packages",
    "secret_in_log",
    "shell_injection",
    "sql_injection",
    "url_tokens",
)

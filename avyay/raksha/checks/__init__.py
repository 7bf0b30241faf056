"""The Python checks: what patterns cannot say. One module each; adding one adds its name here."""

CHECKS: tuple[str, ...] = ()

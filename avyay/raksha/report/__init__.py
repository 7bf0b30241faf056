"""How a report is written: text, JSON, SARIF, Markdown, GitHub, and for agents."""

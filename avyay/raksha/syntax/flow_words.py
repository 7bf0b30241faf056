# ruff: noqa: E501 - long patterns read better whole
"""Words the value flow knows: what outsiders fill, what is harmless, what passes a value on or quotes it."""

from __future__ import annotations

import builtins
import re

__all__ = [
    "BINDERS",
    "CONSTANT",
    "HARMLESS",
    "HARMLESS_LAST",
    "HARMLESS_ROOTS",
    "NAMES_OF_THE_LANGUAGE",
    "OWN_NAMES",
    "PASSING",
    "QUOTED",
    "SOURCES",
]

CONSTANT = re.compile(r"_{0,2}[A-Z][A-Z0-9_]*$")
# Results that carry no text of the caller's choice, whatever went in.
HARMLESS = re.compile(
    r"(?:^|\.)(?:int|float|bool|len|round|abs|sum|ord|hash|id|Number|BigInt|Boolean|parseInt|parseFloat|Decimal"
    r"|toFixed|Itoa|Atoi|ParseInt|ParseUint|ParseFloat|ParseBool|FormatInt|count|now|utcnow|today|isoformat|strftime"
    r"|timestamp|time|monotonic|toISOString|getTime|UUID|uuid1|uuid4|uuidv4|randomUUID|hexdigest|token_hex|NewString"
    r"|token_urlsafe|mkdtemp|mkstemp|NamedTemporaryFile|TemporaryDirectory|MkdirTemp|getpid|cpu_count|secure_filename"
    r"|Duration|Now|Unix|date|parseUUID|ObjectId|QuoteIdentifier|QuoteLiteral|Sanitize|indexOf|findIndex)$"
)
QUOTED = re.compile(
    r"(?:^|[._])(?:quote\w*|shquote|mogrify|escape\w*|Identifier|Literal|SQL|Placeholder|bindparam|quoted_name"
    r"|sanitize\w*|sanitise\w*|validate\w*|allowlist\w*|whitelist\w*|safe_\w+|clean_\w+|is_safe\w*|assert_safe\w*"
    r"|list2cmdline|shescape|format_map_safe|assert\w*Valid\w*|check_\w*allowed\w*)$|(?:^|\.)\w*[a-z]"
    r"(?:Quote|Escape|Sanitize|Validate)\w*$|(?:^|\.)(?:sanitize|escape|quote|validate)[A-Z]\w*$"
    r"|(?:^|\.)(?:shlex|pipes)\.(?:quote|join)$|(?:^|\.)sql\.(?:raw_?safe|id|join|identifier|fragment)$"
)
PASSING = frozenset(
    [
        "strip",
        "lstrip",
        "rstrip",
        "lower",
        "upper",
        "title",
        "casefold",
        "capitalize",
        "trim",
        "trimStart",
        "trimEnd",
        "toLowerCase",
        "toUpperCase",
        "toString",
        "replace",
        "replaceAll",
        "ReplaceAll",
        "encode",
        "decode",
        "splitlines",
        "split",
        "slice",
        "substring",
        "substr",
        "concat",
        "str",
        "String",
        "format",
        "join",
        "Join",
        "Sprintf",
        "Sprint",
        "TrimSpace",
        "ToLower",
        "ToUpper",
        "Trim",
        "dedent",
        "removeprefix",
        "removesuffix",
        "expandvars",
        "expanduser",
        "map",
        "filter",
        "list",
        "tuple",
        "sorted",
        "set",
        "reversed",
        "enumerate",
        "zip",
        "values",
        "keys",
        "entries",
        "items",
        "copy",
        "Path",
        "join",
        "resolve",
        "normpath",
        "get",
        "cast",
        "text",
        "String",
        "Fields",
        "append",
        "Append",
        "from",
    ]
)
HARMLESS_ROOTS = frozenset(
    ["settings", "conf", "constants", "const", "app_settings", "datetime", "time", "math", "random", "uuid", "os.path"]
)
HARMLESS_LAST = re.compile(
    r"^_*(?:table|tables|tablename|table_name|db_table|schema|columns?|column_names?|cols|placeholders?|params_sql|fields?"
    r"|__tablename__|__name__|__file__|pk_column|dialect|paramstyle|param_style|length|size|count|pid|port|executable"
    r"|tableName|columnName|DIR|name_quoted)$"
)
# What an object calls its own tables: chosen where it is made, by the program.
OWN_NAMES = re.compile(
    r"^_*(?:\w+_)?(?:tables?|table_?name|schema|columns?|index_name|collection)$|^_*\w+(?:Table|TableName|Schema)$"
)
SOURCES = re.compile(
    r"(?:^|\.)(?:request|req|ctx\.(?:query|params|request)|args|argv|form|query|params|body|headers|cookies|input"
    r"|raw_input|get_json|values|GET|POST|COOKIES|META|FILES|REQUEST|Query|Param|PostForm|FormValue|URL|Body|stdin|searchParams)(?:\.|$|\(|\[)"
)


BINDERS = frozenset(
    ["import", "as", "def", "class", "function", "for", "global", "nonlocal", "const", "let", "var", "del"]
)
NAMES_OF_THE_LANGUAGE = frozenset(dir(builtins)) | {"arguments", "console", "document", "exports", "global", "location", "module", "process", "this", "self", "window"}  # fmt: skip

"""The form in which OpenTelemetry's variables hold a table: `key=value,key=value`, with percent-encoded parts."""

from urllib.parse import unquote


def parse_pairs(text: str) -> dict[str, str]:
    """Return the table that a text holds. ValueError, without the text because it may be a secret, for another form."""
    table = {}
    for pair in filter(str.strip, text.split(",")):
        key, equals, value = (unquote(part.strip(), errors="strict") for part in pair.partition("="))
        if not equals or not key or not (key + value).isprintable():
            raise ValueError('write it as "key=value,key=value" with percent-encoded values')
        table[key] = value
    return table

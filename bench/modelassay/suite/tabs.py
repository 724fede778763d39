"""A scanner that takes tabs where YAML 1.2 does: between the parts of a line, at its end, before a comment, on empty lines.

ruamel.yaml, as PyYAML, refuses every tab outside of brackets, so that ``steps:<tab>60`` was an error. What stays refused is a
tab that indents: before the first word of a line, and between a ``-`` and a mapping or list that begins on its line.
"""

from __future__ import annotations

from typing import Any

from ruamel.yaml.scanner import Scanner

_LINE_END = "\n\0\r"


class TabScanner(Scanner):
    """ruamel's scanner but for tabs."""

    def scan_to_next_token(self) -> None:
        """Pass over blanks, line breaks and comments."""
        peek, forward = self.reader.peek, self.reader.forward
        while True:
            if self.flow_level or self.reader.column or self._is_blank_line():
                self._pass_blanks()
            while peek() == " ":
                forward()
            if peek() == "#":
                while peek() not in _LINE_END:
                    forward()
            if not self.scan_line_break():
                return
            if not self.flow_level:
                self.allow_simple_key = True

    def _pass_blanks(self) -> None:
        """Pass over spaces and tabs; what follows a tab on its line begins no mapping and no list of blocks."""
        while self.reader.peek() in " \t":
            if self.reader.peek() == "\t" and not self.flow_level:
                self.allow_simple_key = False
            self.reader.forward()

    def _is_blank_line(self) -> bool:
        """Whether nothing but blanks lie between here and the line's end or a comment."""
        length = 0
        while self.reader.peek(length) in " \t":
            length += 1
        return self.reader.peek(length) in f"{_LINE_END}#"

    def scan_plain_spaces(self, indent: Any, start_mark: Any) -> Any:
        """Return the blanks and line breaks inside of an unquoted text; tabs between its words belong to it."""
        length = 0
        while self.reader.peek(length) in " \t":
            length += 1
        blanks = self.reader.prefix(length)
        if "\t" not in blanks:
            return super().scan_plain_spaces(indent, start_mark)
        self.reader.forward(length)
        if self.reader.peek() in _LINE_END:  # a tab at the line's end is no part of the text
            return super().scan_plain_spaces(indent, start_mark)
        return [blanks]

    def scan_block_scalar_ignored_line(self, start_mark: Any) -> Any:
        """Pass over the rest of the line that begins a block of text: blanks and a comment."""
        while self.reader.peek() in " \t":
            self.reader.forward()
        return super().scan_block_scalar_ignored_line(start_mark)

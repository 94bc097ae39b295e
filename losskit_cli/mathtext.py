r"""LaTeX and reStructuredText as a terminal can show them: ``\frac{a}{b}`` becomes ``a / b``, ``\epsilon`` ``ε``, ``x^2`` ``x²``."""

from __future__ import annotations

import re
import textwrap
import unicodedata

SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "zeta": "ζ", "eta": "η", "theta": "θ", "iota": "ι", "kappa": "κ",
    "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "upsilon": "υ", "phi": "φ", "chi": "χ",
    "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ",
    "Psi": "Ψ", "Omega": "Ω",
    "varepsilon": "ε", "vartheta": "ϑ", "varphi": "φ", "varsigma": "ς", "ell": "ℓ", "partial": "∂", "nabla": "∇", "infty": "∞", "hbar": "ħ",
    "sum": "Σ", "prod": "Π", "int": "∫", "cdot": "·", "times": "×", "odot": "⊙", "oplus": "⊕", "otimes": "⊗", "pm": "±", "circ": "∘", "star": "⋆", "ast": "*",
    "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "approx": "≈", "equiv": "≡", "sim": "~", "propto": "∝", "ll": "≪", "gg": "≫",
    "in": "∈", "notin": "∉", "subset": "⊂", "cup": "∪", "cap": "∩", "setminus": "∖", "emptyset": "∅", "forall": "∀", "exists": "∃",
    "to": "→", "rightarrow": "→", "leftarrow": "←", "mapsto": "↦", "Rightarrow": "⇒", "iff": "⇔", "top": "ᵀ", "mid": "|", "vert": "|", "Vert": "‖", "|": "‖",
    "lVert": "‖", "rVert": "‖", "lvert": "|", "rvert": "|",
    "ldots": "…", "dots": "…", "cdots": "⋯", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "langle": "⟨", "rangle": "⟩", "prime": "′", "max": "max",
    "quad": "  ", "qquad": "    ", ",": " ", ";": " ", ":": " ", "!": "", " ": " ", "{": "{", "}": "}", "_": "_", "%": "%", "#": "#", "&": "&",
}
SUPERSCRIPTS = str.maketrans("0123456789+-=()nijkTabcdefghlmoprstuvwxyz", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱʲᵏᵀᵃᵇᶜᵈᵉᶠᵍʰˡᵐᵒᵖʳˢᵗᵘᵛʷˣʸᶻ")
SUBSCRIPTS = str.maketrans("0123456789+-=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ")
DECORATIONS = {
    "hat": "\u0302", "bar": "\u0304", "tilde": "\u0303", "dot": "\u0307", "vec": "\u20d7", "overline": "\u0304", "widehat": "\u0302", "widetilde": "\u0303",
}  # fmt: skip
FRACTIONS = {("1", "2"): "½", ("1", "3"): "⅓", ("2", "3"): "⅔", ("1", "4"): "¼", ("3", "4"): "¾"}
BLACKBOARD = {"R": "ℝ", "E": "𝔼", "N": "ℕ", "Z": "ℤ", "P": "ℙ", "1": "𝟙"}
PLAIN = ("text", "mathrm", "operatorname", "mathcal", "mathbf", "boldsymbol", "mathit", "textit", "mathsf", "bm", "textstyle", "displaystyle")


def formulas_of(docstring: str) -> list[str]:
    """The ``.. math::`` blocks of a docstring, as LaTeX, one string each."""
    found: list[str] = []
    lines = docstring.splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"(\s*)\.\. math::\s*(.*)$", line)
        if not match:
            continue
        indent, block = len(match.group(1)), [match.group(2)]
        for follower in lines[number + 1 :]:
            if follower.strip() and len(follower) - len(follower.lstrip()) <= indent:
                break
            block.append(follower.strip())
        found.append("\n".join(block).strip())
    return [re.sub(r"\n{2,}", "\n", formula) for formula in found if formula]


def readable(latex: str) -> str:
    """A formula in Unicode, one line for each of its own (``\\\\``)."""
    latex = re.sub(r",?\s*&", ", " if "{cases}" in latex else "", latex)
    latex = re.sub(r"\\begin\{[^}]*\}|\\end\{[^}]*\}|\\(?:left|right|bigg?|Bigg?|limits|nonumber)(?![a-zA-Z])\.?|\\label\{[^}]*\}", "", latex)
    latex = latex.replace("\n", " ").replace("~", " ")
    rows = (re.sub(r"\s+", " ", _Reader(row).all()).strip() for row in re.split(r"\\\\(?:\[[^\]]*\])?", latex))
    return unicodedata.normalize("NFC", "\n".join(row for row in rows if row))


def plain(text: str) -> str:
    """reStructuredText as plain text: ``:math:`x``` rendered, roles and double backquotes taken off."""
    text = re.sub(r":math:`([^`]*)`", lambda m: readable(m.group(1)), text)
    text = re.sub(r"\.\. math::\s*(.*)$", lambda m: readable(m.group(1)), text, flags=re.DOTALL)
    text = re.sub(r":\w+(?::\w+)*:`~?([^`<]*?)(?:\s*<[^>]*>)?`", r"\1", text)
    text = re.sub(r"``([^`]*)``", r"\1", re.sub(r"\.\. (?:note|warning|tip)::\s*", "", text))
    return re.sub(r"(?<![\w*])\*{1,2}(\w[^*]*)\*{1,2}(?![\w*])", r"\1", text)


def prose(docstring: str, width: int = 100) -> str:
    """A docstring's text as paragraphs, formulas set apart."""
    out: list[str] = []
    rest = docstring.splitlines()
    paragraph: list[str] = []

    def flush() -> None:
        if paragraph:
            item = paragraph[0].startswith(("- ", "* "))
            out.append(textwrap.fill(plain(" ".join(paragraph)), width, break_long_words=False, subsequent_indent="  " if item else ""))
            paragraph.clear()

    while rest:
        line = rest.pop(0)
        match = re.match(r"(\s*)\.\. math::\s*(.*)$", line)
        if match:
            flush()
            block = [line]
            while rest and (not rest[0].strip() or len(rest[0]) - len(rest[0].lstrip()) > len(match.group(1))):
                block.append(rest.pop(0))
            out += [textwrap.indent(readable(formula), "    ") for formula in formulas_of("\n".join(block))]
        elif line.strip():
            if line.lstrip().startswith(("- ", "* ")):
                flush()
            paragraph.append(line.strip())
        else:
            flush()
    flush()
    return re.sub(r"\n\n(?=[-*] )", "\n", "\n\n".join(out))


class _Reader:
    """Reads LaTeX from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def all(self) -> str:
        out = []
        while self.at < len(self.text):
            out.append(self.token())
        return "".join(out)

    def token(self) -> str:
        """One character, command or group, rendered."""
        char = self.text[self.at]
        self.at += 1
        if char == "{":
            return _Reader(self._group()).all()
        if char in "^_":
            return self._script(char)
        if char == "\\":
            return self._command()
        return char

    def _command(self) -> str:
        match = re.compile(r"[a-zA-Z]+|.", re.DOTALL).match(self.text, self.at)
        if match is None:
            return ""
        name = match.group()
        self.at = match.end()
        if name in ("frac", "dfrac", "tfrac"):
            above, below = self._argument(), self._argument()
            if (above, below) in FRACTIONS:
                return FRACTIONS[above, below]
            simple = len(above) == len(below) == 1
            return f"{above}/{below}" if simple else f"{_grouped(above)} / {_grouped(below)}"
        if name == "sqrt":
            return f"√{_grouped(self._argument(), always=True)}"
        if name in ("mathbb", "mathbbm"):
            letter = self._argument()
            return BLACKBOARD.get(letter, letter)
        if name in DECORATIONS:
            body = self._argument()
            return body[:1] + DECORATIONS[name] + body[1:]
        if name in PLAIN:
            self._skip_blanks()
            return self.token() if self.text[self.at : self.at + 1] == "{" else ""
        if name in SYMBOLS:
            return SYMBOLS[name]
        following = self.text[self.at : self.at + 1]
        return name if following in ("(", "_", "^", "{", "") else f"{name} "  # \log p -> log p

    def _script(self, kind: str) -> str:
        body = self._argument().strip()
        table = SUPERSCRIPTS if kind == "^" else SUBSCRIPTS
        if body and all(ord(c) in table for c in body):
            return body.translate(table)
        if body in ("ᵀ", "′", "*", "⋆", "+"):
            return body
        return f"{kind}{_grouped(body)}" if kind == "^" or len(body) == 1 else f"_{{{body}}}"

    def _argument(self) -> str:
        self._skip_blanks()
        return self.token() if self.at < len(self.text) else ""

    def _skip_blanks(self) -> None:
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1

    def _group(self) -> str:
        start, depth = self.at, 1
        while self.at < len(self.text) and depth:
            char = self.text[self.at]
            if char == "\\":
                self.at += 1
            depth += {"{": 1, "}": -1}.get(char, 0)
            self.at += 1
        return self.text[start : self.at - 1] if not depth else self.text[start:]


def _grouped(text: str, *, always: bool = False) -> str:
    """Parentheses around what would be read wrongly without them."""
    text = text.strip()
    whole = text.startswith("(") and text.endswith(")") and text.count("(") == 1
    return text if whole or (not always and re.fullmatch(r"[^\s+−\-/·]+", text)) else f"({text})"

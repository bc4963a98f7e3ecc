"""User-interface screens drawn with known widgets, and instructions that name one of them."""

from __future__ import annotations

import numpy as np

from examples.pocket.facts import Rng
from examples.pocket.page import FontFile, Page, Run, load_font, pick_font
from examples.pocket.sample import Query, Sample, Thing, Value
from examples.pocket.words import anything, syllable_word
from vlm.grounding.answers import POINTING_SCHEMA

Color = tuple[int, int, int]
BUTTONS = (
    "Save Cancel OK Submit Delete Edit Close Next Back Search Apply Reset Login Register Continue Send Upload Download Add Remove "
    "Create Update Confirm Share Print Export Import Refresh Start Stop Buy Subscribe Follow Reply Filter Preview Publish Finish"
).split()
PAGES = "Home Dashboard Profile Settings Messages Users Orders Reports Products Calendar Help About Contact Blog Pricing Docs Projects Tasks Teams Billing Inbox Charts Tables Forms Pages Widgets Gallery Events".split()
FIELDS = ["Email", "Name", "Password", "Username", "Phone", "Address", "City", "Company", "Subject", "Message", "First name", "Last name", "Search", "Website", "Country", "Title", "Date", "Amount", "Zip code", "Comment"]
ICONS = {
    "search": "look something up", "menu": "open the menu", "close": "close this", "plus": "add something", "trash": "delete it", "gear": "open the settings",
    "home": "go to the start page", "user": "open the profile", "bell": "see notifications", "heart": "like it", "star": "mark as favourite", "mail": "read the mail",
    "arrow_left": "go back", "arrow_right": "go forward", "check": "confirm", "pencil": "edit it", "download": "download it", "eye": "view it", "lock": "lock it", "cart": "open the cart",
}  # fmt: skip


class Screen:
    """A page under construction with its widgets."""

    def __init__(self, rng: Rng, held_out: bool, width: int, height: int) -> None:
        self.rng, self.held_out = rng, held_out
        self.dark = rng.random() < 0.15
        base = int(rng.integers(20, 60)) if self.dark else int(rng.integers(235, 256))
        self.page = Page(width, height, (base, base, base))
        self.font: FontFile = pick_font(rng, held_out, mono=0.03)
        self.size = int(rng.integers(12, 17))
        self.ink: Color = (230, 230, 230) if self.dark else (int(rng.integers(0, 70)),) * 3  # type: ignore[assignment]
        hue = rng.integers(0, 256, 3)
        self.accent: Color = (int(hue[0] * 0.7), int(hue[1] * 0.7), int(min(255, hue[2] * 0.8 + 40)))
        self.things: list[Thing] = []
        self.labels: list[str] = []
        self.runs: dict[int, Run] = {}
        self.notes: dict[int, str] = {}

    def words(self, pool: list[str], invented: float = 0.25) -> str:
        """A label nobody else on this screen has."""
        while True:
            text = str(self.rng.choice(pool)) if self.rng.random() > invented else " ".join(syllable_word(self.rng, self.held_out) for _ in range(int(self.rng.integers(1, 3)))).capitalize()
            if text.lower() not in (t.lower() for t in self.labels):
                self.labels.append(text)
                return text

    def width(self, text: str) -> float:
        """Advance in pixels."""
        return load_font(self.font, self.size).getlength(text)

    def add(self, kind: str, box: list[float], text: str, run: Run | None = None, note: str = "") -> None:
        """Remember a widget."""
        self.things.append(Thing(kind, None, [float(b) for b in box], text))
        if run is not None:
            self.runs[len(self.things) - 1] = run
        if note:
            self.notes[len(self.things) - 1] = note

    def button(self, x: float, y: float, pool: list[str] = BUTTONS) -> float:
        """A button with its top left corner at (x, y); returns its right edge."""
        text = self.words(pool)
        pad, tall = int(self.rng.integers(6, 16)), int(self.size * self.rng.uniform(1.7, 2.4))
        right = x + self.width(text) + 2 * pad
        if right > self.page.width - 4:
            self.labels.pop()
            return x
        filled = self.rng.random() < 0.6
        radius = int(self.rng.integers(0, 8))
        shade = self.accent if self.rng.random() < 0.7 else (120, 120, 120)
        self.page.draw.rounded_rectangle((x, y, right, y + tall), radius, fill=shade if filled else None, outline=shade)
        light = sum(shade) > 420
        color: Color = ((0, 0, 0) if light else (255, 255, 255)) if filled else self.ink
        run = self.page.text(x + pad, y + tall / 2 + self.size * 0.36, text, self.font, self.size, color)
        self.add("button", [x, y, right, y + tall], text, run)
        return right

    def field(self, x: float, y: float, width: float) -> float:
        """A labelled input; returns the bottom edge."""
        text = self.words(FIELDS)
        tall = int(self.size * 2)
        inside = self.rng.random() < 0.3
        if not inside:
            self.page.text(x, y + self.size, text + (":" if self.rng.random() < 0.2 else ""), self.font, self.size, self.ink)
            y += self.size * 1.5
        kind = "dropdown" if not inside and self.rng.random() < 0.15 else "field"
        self.page.draw.rounded_rectangle((x, y, x + width, y + tall), 3, fill=None if self.dark else (255, 255, 255), outline=(150, 150, 150))
        if inside:
            self.page.text(x + 6, y + tall / 2 + self.size * 0.36, text, self.font, self.size, (130, 130, 130))
        if kind == "dropdown":
            self.page.draw.polygon([(x + width - 16, y + tall / 2 - 3), (x + width - 6, y + tall / 2 - 3), (x + width - 11, y + tall / 2 + 4)], fill=self.ink)
            self.page.text(x + 6, y + tall / 2 + self.size * 0.36, "Select", self.font, self.size, self.ink)
        self.add(kind, [x, y, x + width, y + tall], text)
        return y + tall

    def toggle(self, x: float, y: float) -> float:
        """A checkbox, radio button or switch with its label; returns the bottom edge."""
        kind = str(self.rng.choice(["checkbox", "radio", "toggle"]))
        side = int(self.size)
        on = self.rng.random() < 0.4
        wide = side * 2 if kind == "toggle" else side
        if kind == "checkbox":
            self.page.draw.rectangle((x, y, x + side, y + side), outline=self.ink, fill=self.accent if on else None)
        elif kind == "radio":
            self.page.draw.ellipse((x, y, x + side, y + side), outline=self.ink)
            if on:
                self.page.draw.ellipse((x + 3, y + 3, x + side - 3, y + side - 3), fill=self.accent)
        else:
            self.page.draw.rounded_rectangle((x, y, x + wide, y + side), side // 2, fill=self.accent if on else (160, 160, 160))
            knob = x + wide - side if on else x
            self.page.draw.ellipse((knob + 1, y + 1, knob + side - 1, y + side - 1), fill=(255, 255, 255))
        text = self.words(["Remember me", "I agree", "Newsletter", "Show all", "Public", "Notifications", "Express", "Daily", "Weekly", "Auto save"])
        run = self.page.text(x + wide + 6, y + side * 0.9, text, self.font, self.size, self.ink)
        self.add(kind, [x, y, x + wide + 6 + self.width(text), y + side], text, run)
        return y + side

    def link(self, x: float, baseline: float, kind: str, pool: list[str], color: Color | None = None) -> float:
        """Clickable text; returns its right edge."""
        text = self.words(pool)
        right = x + self.width(text)
        if right > self.page.width - 3:
            self.labels.pop()
            return x
        run = self.page.text(x, baseline, text, self.font, self.size, color or self.ink)
        self.add(kind, [x - 2, baseline - self.size, right + 2, baseline + self.size * 0.3], text, run)
        return right

    def icon(self, x: float, y: float, side: float, color: Color | None = None) -> None:
        """A simple drawn icon that does not occur twice on the screen."""
        free = [n for n in ICONS if f"icon:{n}" not in {t.kind for t in self.things}]
        name = str(self.rng.choice(free))
        draw_icon(self.page, name, x, y, side, color or self.ink)
        self.add(f"icon:{name}", [x - 3, y - 3, x + side + 3, y + side + 3], name, note=ICONS[name])


def draw_icon(page: Page, name: str, x: float, y: float, s: float, color: Color) -> None:
    """Draw the icon `name` into the square of side `s` at (x, y)."""
    d = page.draw
    w = 2 if s >= 14 else 1

    def p(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x + s * a, y + s * b) for a, b in points]

    strokes: dict[str, list[list[tuple[float, float]]]] = {
        "menu": [p((0, 0.2), (1, 0.2)), p((0, 0.5), (1, 0.5)), p((0, 0.8), (1, 0.8))],
        "close": [p((0.1, 0.1), (0.9, 0.9)), p((0.9, 0.1), (0.1, 0.9))],
        "plus": [p((0.5, 0.05), (0.5, 0.95)), p((0.05, 0.5), (0.95, 0.5))],
        "check": [p((0.05, 0.55), (0.4, 0.9), (0.95, 0.15))],
        "arrow_left": [p((0.95, 0.5), (0.05, 0.5), (0.4, 0.15)), p((0.05, 0.5), (0.4, 0.85))],
        "arrow_right": [p((0.05, 0.5), (0.95, 0.5), (0.6, 0.15)), p((0.95, 0.5), (0.6, 0.85))],
        "home": [p((0, 0.5), (0.5, 0.05), (1, 0.5)), p((0.18, 0.4), (0.18, 0.95), (0.82, 0.95), (0.82, 0.4))],
        "mail": [p((0, 0.15), (1, 0.15), (1, 0.85), (0, 0.85), (0, 0.15), (0.5, 0.55), (1, 0.15))],
        "download": [p((0.5, 0), (0.5, 0.65), (0.25, 0.4)), p((0.5, 0.65), (0.75, 0.4)), p((0.05, 0.95), (0.95, 0.95))],
        "trash": [p((0.05, 0.2), (0.95, 0.2)), p((0.2, 0.2), (0.25, 1), (0.75, 1), (0.8, 0.2)), p((0.4, 0.05), (0.6, 0.05))],
        "pencil": [p((0.1, 0.9), (0.2, 0.6), (0.75, 0.05), (0.95, 0.25), (0.4, 0.8), (0.1, 0.9))],
        "cart": [p((0, 0.1), (0.2, 0.1), (0.35, 0.65), (0.85, 0.65), (0.98, 0.25), (0.25, 0.25))],
    }
    for stroke in strokes.get(name, []):
        d.line(stroke, fill=color, width=w)
    if name == "search":
        d.ellipse((x, y, x + s * 0.7, y + s * 0.7), outline=color, width=w)
        d.line(p((0.6, 0.6), (1, 1)), fill=color, width=w)
    elif name == "gear":
        d.ellipse((x + s * 0.15, y + s * 0.15, x + s * 0.85, y + s * 0.85), outline=color, width=max(2, int(s * 0.2)))
        for a in range(8):
            cx, cy = np.cos(a * np.pi / 4), np.sin(a * np.pi / 4)
            d.line(p((0.5 + 0.35 * cx, 0.5 + 0.35 * cy), (0.5 + 0.5 * cx, 0.5 + 0.5 * cy)), fill=color, width=w)
    elif name == "user":
        d.ellipse((x + s * 0.28, y, x + s * 0.72, y + s * 0.44), fill=color)
        d.pieslice((x + s * 0.05, y + s * 0.5, x + s * 0.95, y + s * 1.5), 180, 360, fill=color)
    elif name == "bell":
        d.pieslice((x + s * 0.15, y, x + s * 0.85, y + s * 0.9), 180, 360, fill=color)
        d.rectangle((x + s * 0.15, y + s * 0.42, x + s * 0.85, y + s * 0.75), fill=color)
        d.ellipse((x + s * 0.4, y + s * 0.78, x + s * 0.6, y + s), fill=color)
    elif name == "heart":
        d.ellipse((x, y + s * 0.1, x + s * 0.52, y + s * 0.6), fill=color)
        d.ellipse((x + s * 0.48, y + s * 0.1, x + s, y + s * 0.6), fill=color)
        d.polygon(p((0.03, 0.45), (0.97, 0.45), (0.5, 0.98)), fill=color)
    elif name == "star":
        d.polygon([(x + s / 2 + s * r * np.cos(-np.pi / 2 + i * np.pi / 5), y + s / 2 + s * r * np.sin(-np.pi / 2 + i * np.pi / 5)) for i, r in enumerate([0.5, 0.2] * 5)], fill=color)
    elif name == "eye":
        d.ellipse((x, y + s * 0.22, x + s, y + s * 0.78), outline=color, width=w)
        d.ellipse((x + s * 0.35, y + s * 0.35, x + s * 0.65, y + s * 0.65), fill=color)
    elif name == "lock":
        d.rectangle((x + s * 0.12, y + s * 0.45, x + s * 0.88, y + s), fill=color)
        d.arc((x + s * 0.25, y, x + s * 0.75, y + s * 0.8), 180, 360, fill=color, width=w)
    elif name == "cart":
        d.ellipse((x + s * 0.35, y + s * 0.8, x + s * 0.5, y + s * 0.95), fill=color)
        d.ellipse((x + s * 0.7, y + s * 0.8, x + s * 0.85, y + s * 0.95), fill=color)


def _bar(s: Screen) -> float:
    """Top bar with links and icons; returns its height."""
    rng, tall = s.rng, int(s.size * s.rng.uniform(2.2, 3.2))
    shade = s.accent if rng.random() < 0.4 else s.page.background
    s.page.draw.rectangle((0, 0, s.page.width, tall), fill=shade, outline=(180, 180, 180))
    color: Color = (255, 255, 255) if sum(shade) < 380 else (20, 20, 20)
    x = float(rng.integers(6, 20))
    if rng.random() < 0.3:
        s.icon(x, tall / 2 - s.size / 2, s.size, color)
        x += s.size * 2
    for _ in range(int(rng.integers(1, 5))):
        if x > s.page.width * 0.6:
            break
        x = s.link(x, tall / 2 + s.size * 0.36, "link", PAGES, color) + rng.uniform(10, 28)
    right = s.page.width - 10.0
    for _ in range(int(rng.integers(0, 4))):
        right -= s.size * 1.9
        if right < x + 10:
            break
        s.icon(right, tall / 2 - s.size / 2, s.size, color)
    return tall


def _draw(s: Screen) -> None:
    rng, top = s.rng, _bar(s) if s.rng.random() < 0.75 else 0.0
    left, wide = 12.0, s.page.width - 24.0
    if wide > 320 and rng.random() < 0.4:
        side = float(rng.integers(90, 140))
        s.page.draw.line((side, top, side, s.page.height), fill=(180, 180, 180))
        y = top + s.size * 2
        for _ in range(int(rng.integers(3, 8))):
            if y > s.page.height - 10:
                break
            s.link(12, y, "menu_item", PAGES)
            y += s.size * rng.uniform(1.8, 2.4)
        left, wide = side + 14, wide - side
    y = top + s.size * 1.8
    if rng.random() < 0.6:
        s.page.text(left, y, s.words([*PAGES, "Sign in", "New item", "Welcome"]), s.font, int(s.size * 1.5), s.ink)
        y += s.size * 1.2
    while y < s.page.height - s.size * 4:
        kind = rng.random()
        y += s.size * rng.uniform(0.4, 1.0)
        if kind < 0.3:
            y = s.field(left, y, wide * rng.uniform(0.35, 0.95))
        elif kind < 0.5:
            y = s.toggle(left, y)
        elif kind < 0.75:
            x = left
            for _ in range(int(rng.integers(1, 4))):
                x = s.button(x, y) + 8
            y += s.size * 2.5
        elif kind < 0.85:
            x = left
            for _ in range(int(rng.integers(1, 4))):
                x = s.link(x, y + s.size, "link", [*PAGES, "Forgot password?", "Read more", "Learn more", "Details"], s.accent if not s.dark else None) + 18
            y += s.size * 1.6
        elif kind < 0.93:
            text = anything(rng, s.held_out)
            while text and s.width(text) > wide:
                text = text[:-1]
            s.page.text(left, y + s.size, text, s.font, s.size, s.ink)
            y += s.size * 1.5
        else:
            s.icon(left, y, s.size * 1.2)
            y += s.size * 1.6


def instruction(s: Screen, index: int) -> tuple[str, str]:
    """(what a person would say to get at the widget, the action)."""
    rng, thing = s.rng, s.things[index]
    name = thing.text
    quoted = f'"{name}"' if rng.random() < 0.6 else name
    noun = {"button": "button", "link": "link", "menu_item": str(rng.choice(["menu item", "item", "entry"])), "field": str(rng.choice(["field", "input", "box", "text field"])), "dropdown": "drop-down", "checkbox": "checkbox", "radio": "radio button", "toggle": "switch"}.get(thing.kind, "icon")
    verb = str(rng.choice(["click", "press", "tap", "select", "choose", "hit", "Click on", "Click", "please press", "go for"]))
    if thing.kind.startswith("icon:"):
        plain = name.replace("_", " ")
        return str(rng.choice([f"{verb} the {plain} icon", f"{plain} icon", f"{verb} the icon with the {plain}", s.notes[index], s.notes[index].capitalize()])), "click"
    if thing.kind == "field":
        if rng.random() < 0.45:
            text = anything(rng, s.held_out)[:20]
            return str(rng.choice([f'type "{text}" into the {name} {noun}', f'Enter "{text}" as {name}', f'fill "{text}" into {quoted}', f'write "{text}" in the {name} {noun}'])), "type"
        return str(rng.choice([f"{verb} the {name} {noun}", f"put the cursor in the {name} {noun}", f"focus the {quoted} {noun}"])), "click"
    if thing.kind == "dropdown":
        return str(rng.choice([f"open the {name} drop-down", f"{verb} the {quoted} list"])), "click"
    if thing.kind in ("checkbox", "radio", "toggle"):
        return str(rng.choice([f"tick {quoted}", f"{verb} the {quoted} {noun}", f"toggle {quoted}", f"switch {quoted}", f"check {quoted}"])), "click"
    if rng.random() < 0.08:
        return f"hover over {quoted}", "hover"
    return str(rng.choice([f"{verb} {quoted}", f"{verb} the {quoted} {noun}", f"{verb} the {noun} {quoted}", f"open {quoted}", f"go to {quoted}", f"the {name} {noun}"])), "click"


def make(rng: Rng, held_out: bool = False, size: tuple[int, int] | None = None) -> Sample:
    """A screen of the given or a random size with four grounding queries."""
    while True:
        width, height = size or (int(rng.integers(28, 90)) * 8, int(rng.integers(26, 64)) * 8)
        s = Screen(rng, held_out, width, height)
        _draw(s)
        if len(s.things) >= 2:
            return asked(s)


def asked(s: Screen) -> Sample:
    """The screen with four grounding queries."""
    rng, queries = s.rng, []
    for index in rng.permutation(len(s.things))[:4]:
        text, action = instruction(s, int(index))
        thing = s.things[int(index)]
        kind = thing.kind.split(":")[0]
        values = {"/action": Value(action, [None] * len(action)), "/target": Value(kind, [None] * len(kind))}
        queries.append(Query("ground", text, POINTING_SCHEMA, {"action": action, "target": kind}, dict(values), thing.box))
    return Sample(s.page, None, s.things, queries, "screen")



from dataclasses import dataclass, field
@dataclass
class Slot:
    pointer: str; start: int; budget: int
@dataclass
class Scaffold:
    ids: list; slot_of: list; slots: list
def parse_schema(s): return s
def compile_scaffold(s, tok):
    ids, slot_of, slots = [], [], []
    lit = "{"
    n = len(s["properties"])
    for i, (k, v) in enumerate(s["properties"].items()):
        t = v.get("type"); t = t if isinstance(t, list) else [t]
        quote = '"' if "string" in t else ""
        lit += '"' + k + '": ' + quote
        e = tok.encode(lit); ids += e; slot_of += [-1]*len(e)
        b = v.get("maxLength", 24 if quote else 12)
        slots.append(Slot("/" + k.replace("~", "~0").replace("/", "~1"), len(ids), b))
        ids += [0]*b; slot_of += [i]*b
        lit = quote + (", " if i < n-1 else "")
    e = tok.encode(lit + "}"); ids += e; slot_of += [-1]*len(e)
    return Scaffold(ids, slot_of, slots)

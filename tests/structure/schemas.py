"""Schemas over all supported keywords, drawn at random; and a validator that is exact where the reference rounds."""

import re
from decimal import Decimal

import jsonschema
import numpy as np

CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER  # of all formats, with the extra format-nongpl of jsonschema
NAMES = ["a", "b", "total", "x/y", "~", 'q"uote', "<|mask|>", "<|end|>", "é", "line\nbreak", "kind", "n0"]
WORDS = ["yes", "no", "<|null|>", 'a"b', "é€", "abc", "", "back\\slash"]
PATTERNS = [r"^[A-Z]{2}-\d{2,4}$", "ab", r"^(?:cat|dog)s?$", r"[0-9]+$", r"^\w+\s\w", r'^["\\]{1,3}$']
FORMATS = ["date", "email", "uuid", "ipv4", "ipv6", "uri", "hostname", "duration", "date-time", "time", "json-pointer"]


def _multiple_of(validator, divisor, instance, schema):
    if validator.is_type(instance, "number") and Decimal(repr(instance)) % Decimal(repr(divisor)) != 0:
        yield jsonschema.ValidationError(f"{instance!r} is not a multiple of {divisor}")


#: Draft 2020-12 with `multipleOf` in decimal: 0.07 is a multiple of 0.01, and in binary it is not.
Exact = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"multipleOf": _multiple_of})


def validate(schema, data):
    """Raises unless the data is valid."""
    Exact(schema, format_checker=CHECKER).validate(data)


class Draw:
    """Random schemas.

    Args:
        rng: of the draws.
    """

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def one(self, options):
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p):
        return self.rng.random() < p

    def string(self):
        schema = {"type": "string"}
        how = self.rng.integers(5)
        if how == 0:
            schema["pattern"] = self.one(PATTERNS)
        elif how == 1:
            schema["format"] = self.one(FORMATS)
        elif how == 2:
            low = int(self.rng.integers(0, 4))
            schema |= {"minLength": low, "maxLength": low + int(self.rng.integers(0, 6))}
        elif how == 3:
            schema["maxLength"] = int(self.rng.integers(1, 9))
        return schema

    def number(self):
        schema = {"type": self.one(["integer", "number"])}
        if self.chance(0.6):
            low = int(self.rng.integers(-300, 300))
            wide = low + int(self.rng.integers(1, 200))
            scale = 1 if schema["type"] == "integer" else self.one([1, 0.1, 0.01])
            schema[self.one(["minimum", "exclusiveMinimum"])] = round(low * scale, 4)
            schema[self.one(["maximum", "exclusiveMaximum"])] = round(wide * scale, 4) + 2
        if self.chance(0.3):
            schema["multipleOf"] = self.one([1, 2, 7, 0.5, 0.01, 0.25, 5])
        if self.chance(0.1):
            schema["format"] = self.one(["int32", "double"])
        return schema

    def listed(self):
        how = self.rng.integers(4)
        if how == 0:
            return {"const": self.one([1, "a", None, True, [1, {"k": 2}], {"z": []}, 2.5])}
        if how == 1:
            return {"enum": [WORDS[i] for i in self.rng.permutation(len(WORDS))[:3]]}
        if how == 2:
            return {"enum": [1, "1", None, True, "true"][: int(self.rng.integers(1, 6))]}
        return {"enum": [[1, 2], {"a": 1}, "s", 3]}

    def scalar(self):
        how = self.rng.integers(6)
        if how == 0:
            return {"type": "boolean"}
        if how == 1:
            return self.listed()
        if how == 2:
            return {"type": [["string", "integer"], ["number", "null", "boolean"], ["string", "null"], ["string", "boolean", "null"]][int(self.rng.integers(4))]}
        return self.string() if how % 2 else self.number()

    def objects(self, depth):
        names = [NAMES[i] for i in self.rng.permutation(len(NAMES))[: int(self.rng.integers(1, 4))]]
        schema = {"type": "object", "properties": {name: self.schema(depth - 1) for name in names}}
        required = [name for name in names if self.chance(0.5)]
        if required or self.chance(0.5):
            schema["required"] = required
        if self.chance(0.4):
            schema["additionalProperties"] = self.one([False, True, self.scalar()])
        if self.chance(0.2):
            schema["minProperties"] = int(self.rng.integers(0, len(names) + 1))
        if self.chance(0.2):
            schema["maxProperties"] = max(len(required), schema.get("minProperties", 0), int(self.rng.integers(1, 4)))
        if self.chance(0.2):
            schema["patternProperties"] = {self.one(["^k_", "^[a-c]+$", "x"]): self.scalar()}
        if self.chance(0.1):
            schema["propertyNames"] = {"maxLength": 12}
        return schema

    def maps(self, depth):
        schema = {"type": "object", "additionalProperties": self.schema(depth - 1)}
        if self.chance(0.4):
            schema["minProperties"] = int(self.rng.integers(1, 3))
        if self.chance(0.3):
            schema["propertyNames"] = self.one([{"pattern": "^[a-z]{1,4}$"}, {"enum": ["u", "v", "w"]}])
        return schema

    def arrays(self, depth):
        schema = {"type": "array"}
        if self.chance(0.3):
            schema["prefixItems"] = [self.schema(depth - 1) for _ in range(int(self.rng.integers(1, 4)))]
            if self.chance(0.6):
                schema["items"] = self.one([False, True, self.scalar()])
        else:
            schema["items"] = self.schema(depth - 1)
            if self.chance(0.3):
                schema["uniqueItems"] = True
        low = int(self.rng.integers(0, 2 if schema.get("uniqueItems") else 3))
        if self.chance(0.6):
            schema["minItems"] = low
        if self.chance(0.6):
            schema["maxItems"] = low + int(self.rng.integers(0, 3))
        return schema

    def combined(self, depth):
        how = self.rng.integers(5)
        if how == 0:
            return {"anyOf": [self.schema(depth - 1) for _ in range(int(self.rng.integers(1, 4)))]}
        if how == 1:
            kinds = [self.string, self.number, lambda: {"type": "null"}, lambda: self.arrays(depth - 1), lambda: self.objects(depth - 1)]
            return {"oneOf": [kinds[i]() for i in self.rng.permutation(len(kinds))[: int(self.rng.integers(2, 5))]]}
        if how == 2:
            branches = []
            for name in ("circle", "square", "line")[: int(self.rng.integers(2, 4))]:
                branch = self.objects(depth - 1)
                branch.pop("maxProperties", None)
                branch.pop("propertyNames", None)
                branch["properties"] = {"kind": {"const": name}, **{k: v for k, v in branch["properties"].items() if k != "kind"}}
                branch["required"] = ["kind", *(n for n in branch.get("required", []) if n != "kind")]
                branches.append(branch)
            return {self.one(["oneOf", "anyOf"]): branches}
        if how == 3:
            return {"allOf": [self.objects(depth - 1), {"type": "object", "properties": {"extra": self.scalar()}}]}
        base = self.objects(depth - 1)
        names = list(base["properties"])
        base.pop("maxProperties", None)
        return {**base, "anyOf": [{"required": [name]} for name in names]}

    def schema(self, depth):
        if depth <= 0:
            return self.scalar()
        how = self.rng.random()
        if how < 0.4:
            return self.scalar()
        kind = self.one([self.objects, self.objects, self.arrays, self.maps, self.combined])(depth)
        if "type" in kind and isinstance(kind["type"], str) and self.chance(0.2):
            kind["type"] = [kind["type"], "null"]
        return kind

    def root(self):
        schema = self.objects(2)
        if self.chance(0.25):
            schema["properties"]["child"] = self.one([
                {"$ref": "#/$defs/node"}, {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}, {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "integer"}]},
            ])  # fmt: skip
            schema["$defs"] = {"node": {"type": "object", "required": ["v"], "properties": {
                "v": self.scalar(), "left": {"$ref": "#/$defs/node"}, "more": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}}  # fmt: skip
            schema.pop("maxProperties", None)
        return schema


def is_refusal(error):
    """Whether an error names what cannot be done, and where."""
    return bool(error.message) and re.fullmatch(r"(/.*)?", error.pointer) is not None

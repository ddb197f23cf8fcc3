"""Values and schemas: what is judged without the library is judged as the library does."""

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from workflow_composer.answers.output_form import output_form
from workflow_composer.answers.schema import JsonSchema, _fits

NAMES = st.sampled_from(["a", "b", "c"])
LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "number"},
        {"type": "integer"},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["x", "y"]},
        {"type": "string", "enum": ["x"]},
        {"type": "string", "minLength": 2},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        {"type": ["string", "null"]},
        {},
    ]
)


def _schemas(inner):
    objects = st.builds(
        lambda parts, required, rest: {
            "type": "object",
            "properties": parts,
            "required": required,
            **({} if rest is None else {"additionalProperties": rest}),
        },
        st.dictionaries(NAMES, inner, max_size=2),
        st.lists(NAMES, max_size=2, unique=True),
        st.sampled_from([None, True, False, {"type": "string"}]),
    )
    return objects | st.builds(lambda items: {"type": "array", "items": items}, inner)


SCHEMAS = st.recursive(LEAVES, _schemas, max_leaves=4)
VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, -3, 1.0, 1.5, "", "x", "y", "xx"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(SCHEMAS, VALUES)
def test_what_fits_without_the_library_fits_with_it(schema, value):
    fits = Draft202012Validator(schema).is_valid(value)
    assert not _fits(value, schema) or fits
    assert (JsonSchema(schema).problem(value) is None) == fits


def test_usual_answers_need_no_library():
    form = output_form({"gene": "text", "year": "number", "kinds": ["case", "trial"], "more": ["text"]})
    value = {"gene": "TP53", "year": 2001, "kinds": "case", "more": ["x"]}
    assert _fits(value, form._schema.schema)
    assert not _fits({**value, "year": "2001"}, form._schema.schema)
    assert not _fits(True, {"type": "integer"})

"""Comparison of observed objects with desired ones."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_contracts.names import APPLIED_ANNOTATION
from hypha_operator.machinery.drift import covers, is_applied, marked


@pytest.mark.parametrize(
    ("observed", "desired"),
    [
        ({"a": 1, "defaulted": 2}, {"a": 1}),
        ({"cpu": "1"}, {"cpu": "1000m"}),
        ({"memory": "1Gi"}, {"memory": 1073741824}),
        ({}, {"emptyDir": {}, "env": [], "readOnly": False, "text": ""}),
        ([{"name": "b"}, {"name": "a", "x": 1}], [{"name": "a"}]),
        ({"ingress": None}, {"ingress": []}),
        ({"env": [{"name": "INJECTED"}]}, {"env": []}),
        (
            {"tolerations": [{"key": "spot", "operator": "Exists"}, {"key": "lost", "effect": "NoExecute", "s": 1}]},
            {"tolerations": [{"key": "lost", "effect": "NoExecute"}]},
        ),
        (
            {"volumeMounts": [{"name": "a", "mountPath": "/1"}, {"name": "a", "mountPath": "/2"}]},
            {"volumeMounts": [{"name": "a", "mountPath": "/2"}]},
        ),
    ],
)
def test_fields_added_by_others_and_equal_quantities_are_no_drift(observed, desired):
    assert covers(observed, desired)


@pytest.mark.parametrize(
    ("observed", "desired"),
    [
        ({"replicas": 3}, {"replicas": 1}),
        ({"readOnly": True}, {"readOnly": False}),
        ({}, {"a": 1}),
        ({"ports": [{"port": 1}]}, {"ports": [{"port": 1}, {"port": 2}]}),
        ({"rules": ["a", "b"]}, {"rules": ["a"]}),
        ({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "a"}, {"key": "b"}]}),
        ({"volumeMounts": [{"name": "b", "mountPath": "/"}]}, {"volumeMounts": [{"name": "a", "mountPath": "/"}]}),
        ({"selector": {"a": "b", "more": "c"}}, {"selector": {"a": "b"}}),
        ({"ingress": [{"from": []}]}, {"ingress": []}),
        ([{"name": "a", "image": "evil"}], [{"name": "a", "image": "good"}]),
        ({"image": "1"}, {"image": "2"}),
        (None, {"a": 1}),
    ],
)
def test_a_changed_or_missing_field_is_drift(observed, desired):
    assert not covers(observed, desired)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab1m", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "a", "b"]), inner, max_size=3),
    max_leaves=12,
)


@given(json_values)
def test_everything_covers_itself(value: Any):
    assert covers(copy.deepcopy(value), value)


def test_the_annotation_shows_a_field_that_is_no_longer_desired():
    manifest = {"metadata": {"name": "a"}, "data": {"x": "1", "y": "2"}}
    before = marked(manifest)
    after = marked({**manifest, "data": {"x": "1"}})
    assert is_applied(copy.deepcopy(before), before)
    assert not is_applied(before, after)
    assert before["metadata"]["annotations"][APPLIED_ANNOTATION] != after["metadata"]["annotations"][APPLIED_ANNOTATION]
    assert not is_applied(None, before)

"""The messages of the Hypha network: one module per protocol, in their CBOR (wire) and JSON (bridge, job file) forms.

Every message is a frozen pydantic model. `model_dump(mode="python")` yields what goes into CBOR, where peer ids, uuids
and times are byte strings and maps; `model_dump(mode="json")` yields the JSON form, where they are text. Both forms
validate. Field names and their order are the wire's own, so that encoding is byte for byte what the reference writes.
"""

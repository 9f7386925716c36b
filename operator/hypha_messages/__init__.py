"""The messages of the Hypha network, one module per protocol, in CBOR (on the wire) and JSON (bridge, job file).

Every message is a frozen pydantic model. `model_dump(mode="python")` returns the values for CBOR, in which peer ids,
uuids and times are byte strings and maps. `model_dump(mode="json")` returns the JSON form, in which they are text. Both
forms validate. Fields have the names and the order of the wire, so that the encoding equals the reference's bytes.
"""

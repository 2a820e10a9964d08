from serving.gateway_openapi import describe, tensor_schema

SIGNATURES = {
    "serving_default": {"inputs": {"x": {"dtype": "float32", "shape": [-1, 3]}}, "outputs": {}},
    "join": {
        "inputs": {"a": {"dtype": "string", "shape": [-1]}, "n": {"dtype": "uint8", "shape": None}},
        "outputs": {},
    },
}


def test_a_tensor_is_as_many_lists_as_it_has_axes():
    assert tensor_schema({"dtype": "float32", "shape": [-1, 3]}) == {
        "type": "array",
        "items": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
    }
    assert tensor_schema({"dtype": "int8", "shape": []}) == {"type": "integer", "minimum": -128, "maximum": 127}
    assert tensor_schema({"dtype": "bool", "shape": []}) == {"type": "boolean"}
    assert tensor_schema({"dtype": "string", "shape": None}) == {}


def test_each_signature_is_an_alternative_and_a_stream_is_where_sample_is():
    paths = describe({"half life": SIGNATURES, "gone": {}}, False)["paths"]
    predict = paths["/v1/models/half%20life:predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    default, join = predict["anyOf"]
    assert default["properties"]["inputs"]["items"]["maxItems"] == 3
    assert (default["required"], join["required"]) == (["inputs"], ["signature_name", "inputs"])
    assert join["properties"]["inputs"]["required"] == ["a", "n"]
    assert "/v1/models/gone:predict" in paths
    assert not any(path.endswith(":stream") for path in paths)
    assert "/v1/models/gpt:stream" in describe({"gpt": {"sample": SIGNATURES["join"]}}, False)["paths"]


def test_every_operation_has_its_own_name_and_needs_the_key_but_probes_do_not():
    described = describe({"half": SIGNATURES}, False)
    operations = [one for path in described["paths"].values() for one in path.values()]
    assert len({one["operationId"] for one in operations}) == len(operations) == 6
    assert described["security"] == [{"key": []}]
    assert [
        path for path, one in described["paths"].items() if one["get" if "get" in one else "post"].get("security") == []
    ] == [
        "/healthz",
        "/readyz",
    ]
    assert "security" not in describe({}, True)

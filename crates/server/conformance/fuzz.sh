#!/bin/sh
# Ten minutes of requests made from the server's own description: no 5xx, no answer that it does not describe.
#     pip install schemathesis && sh fuzz.sh http://127.0.0.1:8000 [SECONDS]
exec schemathesis run "$1/openapi.json" --url "$1" \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
    --max-time "${2:-600}" --max-examples 1000000 --request-timeout 60 --continue-on-failure

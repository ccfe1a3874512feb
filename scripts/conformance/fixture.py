"""The MCP server that the official conformance suite wants to find behind the endpoint, over stdio.

The suite calls tools, prompts and resources by name and says in its scenarios what each must do; this does that, in
one of the protocol's eras, with nothing but Python's standard library. Usage: fixture.py legacy|modern
"""

import hashlib
import hmac
import json
import queue
import secrets
import sys
import threading
import time

LEGACY, MODERN = "2025-11-25", "2026-07-28"
META = "io.modelcontextprotocol/"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
CAPABILITIES = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "logging": {},
    "completions": {},
}
SECRET = secrets.token_bytes(32)


class RpcError(Exception):
    def __init__(self, code, message, data=None):
        super().__init__(message)
        self.body = {"code": code, "message": message} | ({} if data is None else {"data": data})


def text(words):
    return {"type": "text", "text": words}


def said(words):
    return {"content": [text(words)]}


def user(content):
    return {"role": "user", "content": content}


def form(message, properties, required=None):
    schema = {"type": "object", "properties": properties, "required": list(properties) if required is None else required}
    return {"message": message, "requestedSchema": schema}


def sampling(words, max_tokens=100):
    return {"messages": [user(text(words))], "maxTokens": max_tokens}


def signed(state):
    return f"{state}.{hmac.new(SECRET, state.encode(), hashlib.sha256).hexdigest()}"


def verified(state):
    """The state that `signed` made, or an error if anyone touched it."""
    plain = state.rsplit(".", 1)[0]
    if not hmac.compare_digest(state, signed(plain)):
        raise RpcError(-32602, "requestState was tampered with")
    return plain


ENUMS = {
    "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
    "titledSingle": {
        "type": "string",
        "oneOf": [{"const": f"value{n}", "title": f"{word} Option"} for n, word in enumerate(["First", "Second", "Third"], 1)],
    },
    "legacyEnum": {
        "type": "string",
        "enum": ["opt1", "opt2", "opt3"],
        "enumNames": ["Option One", "Option Two", "Option Three"],
    },
    "untitledMulti": {
        "type": "array", "minItems": 1, "maxItems": 3,
        "items": {"type": "string", "enum": ["option1", "option2", "option3"]},
    },
    "titledMulti": {
        "type": "array", "minItems": 1, "maxItems": 3,
        "items": {"anyOf": [{"const": f"value{n}", "title": f"{word} Choice"} for n, word in enumerate(["First", "Second", "Third"], 1)]},
    },
}
DEFAULTS = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
RICH_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


class Call:
    """One request being answered, with the ways back to whoever asked."""

    def __init__(self, server, request):
        self.server, self.id, self.params = server, request["id"], request.get("params", {})
        self.meta = self.params.get("_meta", {})
        self.arguments = self.params.get("arguments", {})
        self.answers = self.params.get("inputResponses", {})
        self.state = self.params.get("requestState")

    def log(self, words):
        self.server.notify("notifications/message", {"level": "info", "logger": "fixture", "data": words})

    def progress(self, done):
        if "progressToken" in self.meta:
            report = {"progressToken": self.meta["progressToken"], "progress": done, "total": 100}
            self.server.notify("notifications/progress", report)

    def ask(self, method, params):
        """Asks the client, and waits for what it says."""
        return self.server.ask(method, params)

    def capabilities(self):
        return self.meta.get(META + "clientCapabilities", {})


def needs(requests, state=None):
    """Cannot go on without these answers."""
    requests = {key: {"method": method, "params": params} for key, (method, params) in requests.items()}
    result = {"resultType": "input_required", "inputRequests": requests}
    return result if state is None else result | {"requestState": state}


def content_of(answer):
    content = answer.get("content") if isinstance(answer, dict) else None
    return content if isinstance(content, dict) else None


class Tools:
    """The suite's tools by name; a docstring is the description."""

    def test_simple_text(self, call):
        """Answers with a text."""
        return said("This is a simple text response for testing.")

    def test_image_content(self, call):
        """Answers with an image."""
        return {"content": [{"type": "image", "data": PNG, "mimeType": "image/png"}]}

    def test_audio_content(self, call):
        """Answers with a sound."""
        return {"content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]}

    def test_embedded_resource(self, call):
        """Answers with a resource."""
        resource = {"uri": "test://embedded-resource", "mimeType": "text/plain", "text": "This is an embedded resource content."}
        return {"content": [{"type": "resource", "resource": resource}]}

    def test_multiple_content_types(self, call):
        """Answers with a text, an image and a resource."""
        resource = {"uri": "test://mixed-content-resource", "mimeType": "application/json", "text": '{"test":"data","value":123}'}
        image = {"type": "image", "data": PNG, "mimeType": "image/png"}
        return {"content": [text("Multiple content types test:"), image, {"type": "resource", "resource": resource}]}

    def test_tool_with_logging(self, call):
        """Logs three times while it runs."""
        for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            call.log(words)
            time.sleep(0.05)
        return said("logged")

    def test_tool_with_progress(self, call):
        """Reports progress three times while it runs."""
        for done in (0, 50, 100):
            call.progress(done)
            time.sleep(0.05)
        return said("done")

    def test_error_handling(self, call):
        """Fails."""
        return said("This tool intentionally returns an error for testing") | {"isError": True}

    def json_schema_2020_12_tool(self, call):
        """Has a schema that uses much of JSON Schema."""
        return said(json.dumps(call.arguments))

    def test_trigger_tool_change(self, call):
        """Adds a tool, or takes it away again."""
        self.has_extra = not self.has_extra
        call.server.changed("tools")
        return said("tools changed")

    def test_trigger_prompt_change(self, call):
        """Adds a prompt, or takes it away again."""
        call.server.prompts.has_extra = not call.server.prompts.has_extra
        call.server.changed("prompts")
        return said("prompts changed")

    def test_trigger_resource_update(self, call):
        """Says that the watched resource changed, to who wants to know."""
        call.server.updated("test://watched-resource")
        return said("updated")

    has_extra = False

    def extra(self, call):
        """Comes and goes."""
        return said("it is here")

    def names(self):
        return [name for name in dir(self) if name.startswith(("test_", "json_"))] + ["extra"] * self.has_extra

    def find(self, name):
        if name not in self.names():
            raise RpcError(-32602, f"there is no tool {name!r}")
        return getattr(self, name)

    def listed(self):
        return [self.describe(name) for name in self.names()]

    def describe(self, name):
        schema = RICH_SCHEMA if name == "json_schema_2020_12_tool" else {"type": "object", "properties": {}}
        return {"name": name, "description": getattr(self, name).__doc__, "inputSchema": schema}


class LegacyTools(Tools):
    """Those that ask the client while they run."""

    def test_sampling(self, call):
        """Asks the client's model."""
        answer = call.ask("sampling/createMessage", sampling(call.arguments.get("prompt", "")))
        return said(f"LLM response: {answer['content']['text']}")

    def test_elicitation(self, call):
        """Asks the client's user."""
        answer = call.ask("elicitation/create", form(call.arguments.get("message", ""), {"response": {"type": "string"}}))
        return said(f"User response: action={answer['action']}, content={json.dumps(answer.get('content'))}")

    def test_elicitation_sep1034_defaults(self, call):
        """Asks the client's user, with an answer for each question proposed."""
        answer = call.ask("elicitation/create", form("Please review the form", DEFAULTS, []))
        return said(f"Elicitation completed: action={answer['action']}, content={json.dumps(answer.get('content'))}")

    def test_elicitation_sep1330_enums(self, call):
        """Asks the client's user to choose, in every way the protocol has."""
        answer = call.ask("elicitation/create", form("Please select options", ENUMS, []))
        return said(f"Elicitation completed: action={answer['action']}, content={json.dumps(answer.get('content'))}")


NAME = ("elicitation/create", form("What is your name?", {"name": {"type": "string"}}))
CAPITAL = ("sampling/createMessage", sampling("What is the capital of France?"))
ROOTS = ("roots/list", {})
CONFIRM = ("elicitation/create", form("Please confirm", {"ok": {"type": "boolean"}}))
COLOR = ("elicitation/create", form("Step 2: What is your favorite color?", {"color": {"type": "string"}}))


class ModernTools(Tools):
    """Those that answer with what they need, and are called again."""

    def test_missing_capability(self, call):
        """Needs a client that samples."""
        if "sampling" not in call.capabilities():
            raise RpcError(-32021, "this tool needs sampling", {"requiredCapabilities": {"sampling": {}}})
        return said("the client samples")

    def test_streaming_elicitation(self, call):
        """Reports progress, then needs an answer."""
        call.progress(50)
        return needs({"user_name": NAME})

    def test_logging_tool(self, call):
        """Logs, if the caller asked for it."""
        if META + "logLevel" in call.meta:
            call.log("logging was asked for")
        return said("logged")

    def test_input_required_result_elicitation(self, call):
        """Needs a name."""
        content = content_of(call.answers.get("user_name"))
        if content is None or not isinstance(content.get("name"), str):
            return needs({"user_name": NAME})
        return said(f"Hello, {content['name']}!")

    def test_input_required_result_sampling(self, call):
        """Needs the client's model."""
        content = content_of(call.answers.get("capital_question"))
        return needs({"capital_question": CAPITAL}) if content is None else said(content["text"])

    def test_input_required_result_list_roots(self, call):
        """Needs the client's roots."""
        if "client_roots" not in call.answers:
            return needs({"client_roots": ROOTS})
        return said(json.dumps(call.answers["client_roots"]["roots"]))

    def test_input_required_result_request_state(self, call):
        """Needs a confirmation and its own state."""
        if "confirm" not in call.answers:
            return needs({"confirm": CONFIRM}, signed("confirming"))
        verified(call.state)
        return said("state-ok")

    test_input_required_result_tampered_state = test_input_required_result_request_state

    def test_input_required_result_multiple_inputs(self, call):
        """Needs three things at once."""
        wanted = {"user_name": NAME, "greeting": ("sampling/createMessage", sampling("Generate a greeting", 50)), "client_roots": ROOTS}
        if not wanted.keys() <= call.answers.keys():
            return needs(wanted, signed("three"))
        verified(call.state)
        return said("all three are here")

    def test_input_required_result_multi_round(self, call):
        """Needs one thing, then another."""
        if "step2" in call.answers:
            return said(f"{verified(call.state)} likes {content_of(call.answers['step2'])['color']}")
        if "step1" in call.answers:
            verified(call.state)
            return needs({"step2": COLOR}, signed(content_of(call.answers["step1"])["name"]))
        return needs({"step1": NAME}, signed("nobody"))

    def test_input_required_result_capabilities(self, call):
        """Needs what the client says it can give."""
        able = {"sampling": ("ask_model", CAPITAL), "elicitation": ("ask_user", NAME), "roots": ("ask_roots", ROOTS)}
        return needs(dict(able[name] for name in able if name in call.capabilities()), signed("able"))


class Prompts:
    has_extra = False

    def listed(self, era):
        def prompt(name, *arguments):
            arguments = [{"name": argument, "description": argument, "required": True} for argument in arguments]
            return {"name": name, "description": name.replace("_", " "), "arguments": arguments}

        prompts = [
            prompt("test_simple_prompt"),
            prompt("test_prompt_with_arguments", "arg1", "arg2"),
            prompt("test_prompt_with_embedded_resource", "resourceUri"),
            prompt("test_prompt_with_image"),
        ]
        prompts += [prompt("test_input_required_result_prompt")] if era == MODERN else []
        return prompts + ([prompt("extra")] if self.has_extra else [])

    def get(self, call):
        arguments = call.arguments
        match call.params["name"]:
            case "test_simple_prompt":
                return {"messages": [user(text("This is a simple prompt for testing."))]}
            case "test_prompt_with_arguments":
                words = f"Prompt with arguments: arg1='{arguments['arg1']}', arg2='{arguments['arg2']}'"
                return {"messages": [user(text(words))]}
            case "test_prompt_with_embedded_resource":
                resource = {"uri": arguments["resourceUri"], "mimeType": "text/plain", "text": "Embedded resource content for testing."}
                embedded = {"type": "resource", "resource": resource}
                return {"messages": [user(embedded), user(text("Please process the embedded resource above."))]}
            case "test_prompt_with_image":
                image = {"type": "image", "data": PNG, "mimeType": "image/png"}
                return {"messages": [user(image), user(text("Please analyze the image above."))]}
            case "test_input_required_result_prompt":
                content = content_of(call.answers.get("user_context"))
                if content is None:
                    question = form("What context should the prompt use?", {"context": {"type": "string"}})
                    return needs({"user_context": ("elicitation/create", question)})
                return {"messages": [user(text(f"Prompt with context: {content['context']}"))]}
        raise RpcError(-32602, f"there is no prompt {call.params['name']!r}")


RESOURCES = {
    "test://static-text": ("text/plain", {"text": "This is the content of the static text resource."}),
    "test://static-binary": ("image/png", {"blob": PNG}),
    "test://watched-resource": ("text/plain", {"text": "Watched resource content"}),
}
TEMPLATE = ("test://template/", "/data")


def read_resource(call):
    uri = call.params["uri"]
    if uri in RESOURCES:
        kind, body = RESOURCES[uri]
        return {"contents": [{"uri": uri, "mimeType": kind} | body]}
    if uri.startswith(TEMPLATE[0]) and uri.endswith(TEMPLATE[1]):
        number = uri[len(TEMPLATE[0]) : -len(TEMPLATE[1])]
        body = json.dumps({"id": number, "templateTest": True, "data": f"Data for ID: {number}"})
        return {"contents": [{"uri": uri, "mimeType": "application/json", "text": body}]}
    raise RpcError(-32602 if call.server.era == MODERN else -32002, "Resource not found", {"uri": uri})


class Server:
    def __init__(self, era):
        self.era = era
        self.tools = ModernTools() if era == MODERN else LegacyTools()
        self.prompts = Prompts()
        self.writing = threading.Lock()
        self.asked = {}
        self.subscriptions = {}
        self.watched = set()

    def write(self, message):
        with self.writing:
            sys.stdout.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
            sys.stdout.flush()

    def notify(self, method, params):
        self.write({"method": method, "params": params})

    def ask(self, method, params):
        number = f"fixture-{secrets.token_hex(4)}"
        self.asked[number] = queue.Queue(1)
        self.write({"id": number, "method": method, "params": params})
        answer = self.asked[number].get(timeout=20)
        if "error" in answer:
            raise RpcError(-32603, answer["error"]["message"])
        return answer["result"]

    def changed(self, kind):
        method = f"notifications/{kind}/list_changed"
        if self.era == LEGACY:
            return self.notify(method, {})
        for number, wanted in list(self.subscriptions.items()):
            if wanted.get(f"{kind}ListChanged"):
                self.notify(method, {"_meta": {META + "subscriptionId": number}})

    def updated(self, uri):
        method = "notifications/resources/updated"
        if uri in self.watched:
            self.notify(method, {"uri": uri})
        for number, wanted in list(self.subscriptions.items()):
            if uri in wanted.get("resourceSubscriptions", []):
                self.notify(method, {"uri": uri, "_meta": {META + "subscriptionId": number}})

    def answer(self, request):
        try:
            result = self.result(request["method"], Call(self, request))
            if result is None:
                return
            if self.era == MODERN:
                result = {"resultType": "complete"} | result
            self.write({"id": request["id"], "result": result})
        except RpcError as error:
            self.write({"id": request["id"], "error": error.body})
        except (KeyError, TypeError) as error:
            self.write({"id": request["id"], "error": {"code": -32602, "message": f"unreadable params: {error!r}"}})

    def result(self, method, call):
        if self.era == MODERN and META + "protocolVersion" not in call.meta:
            raise RpcError(-32601, f"{method} without a protocol version is not served here")
        match method:
            case "initialize" if self.era == LEGACY:
                return {"protocolVersion": LEGACY, "capabilities": CAPABILITIES, "serverInfo": {"name": "fixture", "version": "1"}}
            case "server/discover" if self.era == MODERN:
                identity = {META + "serverInfo": {"name": "fixture", "version": "1"}}
                return {"supportedVersions": [MODERN], "capabilities": CAPABILITIES, "ttlMs": 0, "cacheScope": "private", "_meta": identity}
            case "subscriptions/listen" if self.era == MODERN:
                self.subscriptions[call.id] = wanted = call.params.get("notifications", {})
                identity = {META + "subscriptionId": call.id}
                return self.notify("notifications/subscriptions/acknowledged", {"_meta": identity, "notifications": wanted})
            case "tools/list":
                return {"tools": self.tools.listed()} | self.hints()
            case "tools/call":
                return self.tools.find(call.params["name"])(call)
            case "prompts/list":
                return {"prompts": self.prompts.listed(self.era)} | self.hints()
            case "prompts/get":
                return self.prompts.get(call)
            case "resources/list":
                resources = [{"uri": uri, "name": uri, "description": uri, "mimeType": kind} for uri, (kind, _) in RESOURCES.items()]
                return {"resources": resources} | self.hints()
            case "resources/templates/list":
                template = {"uriTemplate": "{id}".join(TEMPLATE), "name": "template", "description": "by number", "mimeType": "application/json"}
                return {"resourceTemplates": [template]} | self.hints()
            case "resources/read":
                return read_resource(call) | self.hints()
            case "completion/complete":
                return {"completion": {"values": [call.params["argument"]["value"] + "-completed"], "total": 1, "hasMore": False}}
            case "resources/subscribe" if self.era == LEGACY:
                self.watched.add(call.params["uri"])
                return {}
            case "resources/unsubscribe" if self.era == LEGACY:
                self.watched.discard(call.params["uri"])
                return {}
            case "ping" | "logging/setLevel" if self.era == LEGACY:
                return {}
        raise RpcError(-32601, f"{method} is not served here")

    def hints(self):
        return {"ttlMs": 60000, "cacheScope": "public"} if self.era == MODERN else {}

    def serve(self):
        for line in sys.stdin:
            message = json.loads(line)
            if "method" not in message:
                waiting = self.asked.get(message.get("id"))
                if waiting:
                    waiting.put(message)
            elif "id" in message:
                threading.Thread(target=self.answer, args=(message,), daemon=True).start()
            elif message["method"] == "notifications/cancelled":
                self.subscriptions.pop(message["params"].get("requestId"), None)


Server({"legacy": LEGACY, "modern": MODERN}[sys.argv[1]]).serve()

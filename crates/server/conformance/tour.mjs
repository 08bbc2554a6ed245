// A tour of a running server with OpenAI's own client for JavaScript.
//
//     npm install openai
//     node tour.mjs http://127.0.0.1:8000 [KEY]
//
// Prints a line for each check; ends with 1 if one of them failed.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [url = "http://127.0.0.1:8000", key = "none"] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 120_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Tell me a story." }];
const chat = (more) => client.chat.completions.create({ model, messages, max_tokens: 24, seed: 7, ...more });
let failed = 0;

async function check(name, body) {
  try {
    await body();
    console.log(`ok    ${name}`);
  } catch (e) {
    failed += 1;
    console.log(`FAIL  ${name}: ${e.message}`);
  }
}

await check("chat", async () => {
  const answer = await chat();
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

await check("a stream is the same answer", async () => {
  const whole = await chat({ temperature: 0.8 });
  let text = "";
  for await (const chunk of await chat({ temperature: 0.8, stream: true })) text += chunk.choices[0]?.delta?.content ?? "";
  assert.equal(text, whole.choices[0].message.content);
});

await check("the stream helper", async () => {
  const runner = client.chat.completions.stream({ model, messages, max_tokens: 12 });
  const final = await runner.finalChatCompletion();
  assert.ok(final.choices[0].message.content);
});

await check("an aborted stream", async () => {
  const stream = await chat({ stream: true, max_tokens: 400 });
  for await (const _ of stream) break;
  stream.controller.abort();
});

await check("logprobs", async () => {
  const answer = await chat({ logprobs: true, top_logprobs: 2, max_tokens: 4 });
  assert.equal(answer.choices[0].logprobs.content.length, answer.usage.completion_tokens);
  assert.equal(answer.choices[0].logprobs.content[0].top_logprobs.length, 2);
});

await check("completions", async () => {
  const answer = await client.completions.create({ model, prompt: ["Once", "The king"], max_tokens: 4 });
  assert.deepEqual(answer.choices.map((c) => c.index), [0, 1]);
});

await check("responses", async () => {
  const answer = await client.responses.create({ model, input: "Tell me a story.", max_output_tokens: 8 });
  assert.ok(answer.output_text);
});

await check("tools run to an answer", async () => {
  const parameters = {
    type: "object",
    properties: { n: { type: "integer", minimum: 0, maximum: 9 } },
    required: ["n"],
    additionalProperties: false,
  };
  const answer = await chat({
    tools: [{ type: "function", function: { name: "roll", parameters } }],
    tool_choice: { type: "function", function: { name: "roll" } },
    max_tokens: 80,
  });
  const call = answer.choices[0].message.tool_calls[0];
  assert.equal(call.function.name, "roll");
  assert.ok(Number.isInteger(JSON.parse(call.function.arguments).n));
});

await check("a schema", async () => {
  const schema = { type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"], additionalProperties: false };
  const answer = await chat({ response_format: { type: "json_schema", json_schema: { name: "s", schema, strict: true } } });
  assert.equal(typeof JSON.parse(answer.choices[0].message.content).ok, "boolean");
});

await check("errors", async () => {
  await assert.rejects(chat({ temperature: 9 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
  await assert.rejects(chat({ model: "nobody" }), (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found");
});

console.log(`${failed} failed`);
process.exit(failed ? 1 : 0);

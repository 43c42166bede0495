// Usage: node llama_cpp.mjs FOLDER MODEL.gguf CASES.json
// FOLDER/node_modules has node-llama-cpp. Prints, for each case {prompt, ids, number, stops}, the ids of the prompt and
// at most `number` greedy tokens after `ids`, in JSON; with `stops` they end before the token that ends a generation.
import fs from "fs";
import path from "path";
import { pathToFileURL } from "url";

const [folder, file, cases] = process.argv.slice(2);
const found = path.join(folder, "node_modules", "node-llama-cpp", "dist", "index.js");
const { getLlama } = await import(pathToFileURL(found));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 1 });
const model = await llama.loadModel({ modelPath: path.resolve(file) });
const context = await model.createContext({
  contextSize: 128,
  batchSize: 128,
  flashAttention: false,
  // The default cache in half precision changes the tokens of random models.
  experimentalKvCacheKeyType: "F32",
  experimentalKvCacheValueType: "F32",
});
const sequence = context.getSequence();
const results = [];
for (const { prompt, ids, number, stops } of JSON.parse(fs.readFileSync(cases))) {
  await sequence.clearHistory();
  const greedy = [];
  const options = { temperature: 0, yieldEogToken: !stops };
  for await (const token of sequence.evaluate(ids, options)) {
    greedy.push(token);
    if (greedy.length >= number) break;
  }
  results.push({ ids: model.tokenize(prompt, false), greedy });
}
fs.writeSync(1, JSON.stringify(results));
process.exit(0);

/** A client of openapi-typescript and openapi-fetch: node client.js URL KEY PHOTO */

import assert from "node:assert/strict";
import {readFileSync} from "node:fs";
import createClient from "openapi-fetch";
import type {components, operations, paths} from "./api.js";

type Schemas = components["schemas"];

const [url = "", key = "", photo = ""] = process.argv.slice(2);
const client = createClient<paths>({baseUrl: url, headers: {"x-api-key": key}});
const image = readFileSync(photo).toString("base64");

const classified = await client.POST("/classify", {body: {image, labels: ["a cat", "a rocket"]}});
assert(classified.data, String(classified.error?.detail));
const {results} = classified.data as Schemas["ClassifyImageResponse"];
assert.equal(results.length, 2);
assert(!process.env.TRAINED || results[0]?.label === "a cat");

const prompt: Schemas["Prompt"] = {points: [[200, 60], {x: 210, y: 70}]};
const body: operations["Segment"]["requestBody"]["content"]["application/json"] =
  {image, prompts: [prompt], encoding: "RLE"};
const segmented = await client.POST("/segment", {body});
const [mask] = segmented.data?.results[0]?.masks ?? [];
assert(mask?.box && mask.box.x_max > mask.box.x_min);
assert(mask.rle && mask.rle.counts.length > 0);

const refused = await client.POST("/classify", {body: {image, labels: []}});
assert.equal(refused.error?.status satisfies number | undefined, 400);
// @ts-expect-error: labels are required
assert(!(await client.POST("/classify", {body: {image}})).data);
console.log("ok");

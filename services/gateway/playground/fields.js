// A form made from a JSON schema: a field for each property, and the values that the user has given.

import {made} from "./rows.js";

/** The fields of an object's schema, in their order: what to show, and `read()`, undefined without a value. */
export function fieldsOf({properties = {}, required = [], $defs = {}, "x-order": order = Object.keys(properties)}) {
  return order.map(name => fieldOf(name, plain(properties[name], $defs), required.includes(name)));
}

/** A property without references; of a choice between a value and none, the value. */
function plain(property, defs) {
  const {$ref, anyOf, allOf = anyOf, ...rest} = property, some = allOf?.filter(({type}) => type !== "null") ?? [];
  const other = $ref ? defs[$ref.split("/").at(-1)] ?? {} : some.length === 1 && some[0];
  return other ? plain({...other, ...rest}, defs) : property;
}

function fieldOf(name, schema, required) {
  const {description = "", default: usual = null} = schema, [input, parse] = inputOf(schema, required);
  const label = made("label", name.replaceAll("_", " "), " ", input), hint = made("p", description);
  Object.assign(input, {name, required: required && input.type !== "checkbox", autocomplete: "off"});
  hint.className = "hint";
  hint.id = `about-${name}`;
  if (description) input.setAttribute("aria-describedby", hint.id);
  const empty = typeof usual === "string" && usual ? "" : Array.isArray(usual) && usual.length ? [] : undefined;  // not the default
  const read = () => {
    if (input.type === "checkbox") return input.checked;
    if (!input.value.trim()) return empty;
    try { return parse(input.value); } catch { throw new Error(`“${input.value.slice(0, 80)}” does not fit ${name}: type ${input.title}.`); }
  };
  return {name, read, shown: description ? [label, hint] : [label]};
}

const field = (kind, given) => Object.assign(made(kind), given);

/** The element for a value of this schema, and what makes the value of its text. */
function inputOf(schema, required) {
  const {type, items = {}, minimum: min = "", maximum: max = "", default: usual = null} = schema, some = schema.enum ?? ("const" in schema && [schema.const]);
  if (some || (type === "boolean" && usual === null && !required)) return [choice(some || [true, false], usual, required), JSON.parse];
  if (type === "boolean") return [field("input", {type: "checkbox", checked: usual})];
  if (type === "integer" || type === "number") return [field("input", {type: "number", min, max, step: type === "integer" ? 1 : "any", value: usual ?? ""}), number];
  if (type === "string") return [field("input", {value: usual ?? ""}), String];
  const json = usual === null ? "" : JSON.stringify(usual);
  if (type !== "array" || !["string", "integer", "number"].includes(items.type)) return [field("textarea", {value: json, rows: 3, spellcheck: false, title: "JSON"}), JSON.parse];
  const of = items.type === "string" ? item => item.trim() : number, listed = (usual ?? []).join(", ");
  const list = text => text.trim().startsWith("[") ? JSON.parse(text) : text.split(",").filter(item => item.trim()).map(of);
  return [field("input", {value: usual?.some(item => /^\[|,/.test(item)) ? json : listed, title: items.type === "string" ? "words with commas between them" : "numbers with commas between them"}), list];
}

function choice(some, usual, required) {
  const options = some.map(each => new Option(each, JSON.stringify(each), false, each === usual));
  return made("select", ...(required || some.includes(usual) ? [] : [new Option("", "")]), ...options);
}

function number(text) {
  if (!Number.isFinite(Number(text))) throw new Error("no number");
  return Number(text);
}

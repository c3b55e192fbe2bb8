// The language of the page: that of the browser until another one is chosen, which is remembered.

import { LANGUAGES, TEXTS } from "./texts.js";

const KEPT = "ctxrec-language";
let language = remembered() ?? preferred();

// A browser may keep no storage for the page; the choice then holds until it is loaded again.
function remembered() {
  try {
    const kept = localStorage.getItem(KEPT);
    return Object.hasOwn(LANGUAGES, kept) ? kept : null;
  } catch {
    return null;
  }
}

// The first language of the browser that the page has, whatever its country: zh-TW and zh-Hans are zh.
function preferred() {
  const wanted = (navigator.languages ?? [navigator.language]).map((tag) => tag.toLowerCase().split("-")[0]);
  return wanted.find((code) => Object.hasOwn(LANGUAGES, code)) ?? "en";
}

export const languages = () => Object.entries(LANGUAGES).map(([code, { name, tag }]) => ({ code, name, tag, chosen: code === language }));
export const tag = () => LANGUAGES[language].tag;

export function choose(code) {
  language = code;
  try {
    localStorage.setItem(KEPT, code);
  } catch {
    // it is not remembered
  }
}

// A text by its key; {name} becomes the value of that name, numbers in the way of the language.
export function say(key, values = {}) {
  const found = TEXTS[key][language];
  const form = typeof found === "string" ? found : found[new Intl.PluralRules(tag()).select(values.n)];
  return form.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? number(values[name]) : values[name]));
}

// A name that the service gives, in words where the page has some: a stage, a source, a part of the time.
export const nameIn = (group, name) => (Object.hasOwn(TEXTS, `${group}.${name}`) ? say(`${group}.${name}`) : name);

export const number = (value, digits = 0) =>
  new Intl.NumberFormat(tag(), { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
// At most six digits that count, without zeros at the end.
export const quantity = (value) => new Intl.NumberFormat(tag(), { maximumSignificantDigits: 6, useGrouping: false }).format(value);

export const dateTime = (seconds, zone) =>
  new Intl.DateTimeFormat(tag(), { dateStyle: "medium", timeStyle: "short", timeZone: zone }).format(seconds * 1000);

// Monday first. 5 January 1970 was one.
export const weekdays = () =>
  [...Array(7).keys()].map((day) =>
    new Intl.DateTimeFormat(tag(), { weekday: "long", timeZone: "UTC" }).format(Date.UTC(1970, 0, 5 + day)),
  );

const PLACES = { text: "textContent", hint: "placeholder", label: "ariaLabel", title: "title" };

// Fills in the texts of a part of the document: data-text, data-hint, data-label and data-title name them.
export function fill(root) {
  for (const [name, property] of Object.entries(PLACES)) {
    for (const element of root.querySelectorAll(`[data-${name}]`)) element[property] = say(element.dataset[name], element.dataset);
  }
}

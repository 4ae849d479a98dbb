// The law of the cartoon faces: their parts, how they are drawn at random, and how they become pictures.
import fs from "node:fs";
import path from "node:path";
import { Resvg } from "@resvg/resvg-js";
import { faceToSvgString } from "facesjs";

// [probability, caption phrase, ids or colours of facesjs]
export const WORLD = {
  skin: {
    light: [0.4, "light skin", ["#f2d6cb", "#fedac7"]],
    tan: [0.3, "tan skin", ["#d8a47f", "#c68e6b"]],
    dark: [0.3, "dark skin", ["#8d5a46", "#6b4236"]],
  },
  hair: {
    bald: [0.12, "bald", ["bald", "short-fade"]],
    short: [0.38, "short", ["short", "short2", "crop", "middle-part", "parted", "spike", "high", "emo"]],
    curly: [0.2, "curly", ["afro", "afro2", "curly2", "spike3"]],
    long: [0.3, "long", ["female1", "female5", "female6", "female7", "female9", "female10"]],
  },
  hair_color: {
    black: [0.3, "black", ["#272421"]],
    brown: [0.25, "brown", ["#5a3825"]],
    blond: [0.2, "blond", ["#e0bf76"]],
    red: [0.15, "red", ["#b5482f"]],
    grey: [0.1, "grey", ["#a5a5a5"]],
  },
  facial_hair: {
    none: [0.45, "clean shaven", ["none"]],
    moustache: [0.15, "a moustache", ["mustache1", "mustache1SB2"]],
    goatee: [0.15, "a goatee", ["fullgoatee2", "fullgoatee4", "wilt", "goatee19"]],
    beard: [0.25, "a beard", ["beard1", "beard2", "beard3", "beard5", "honest-abe-stache"]],
  },
  glasses: {
    no: [0.7, "", ["none"]],
    yes: [0.3, "glasses", ["glasses1-primary", "glasses1-secondary", "glasses2-black", "glasses2-secondary"]],
  },
  headwear: {
    none: [0.7, "", ["none"]],
    cap: [0.12, "a cap", ["hat"]],
    santa: [0.08, "a santa hat", ["santa-hat"]],
    headband: [0.1, "a headband", ["headband"]],
  },
  smile: {
    no: [0.5, "serious", ["straight", "closed", "mouth5"]],
    yes: [0.5, "smiling", ["smile", "smile2", "smile3"]],
  },
};

// Unlabelled variety; thin wrinkle lines are left out, 64 pixels can't show them.
export const SHAPES = {
  head: ["head1", "head2", "head4", "head5", "head12", "head15", "head17", "female1"],
  eye: ["eye1", "eye3", "eye6", "eye9", "eye13", "female1", "female4", "female8"],
  eyebrow: ["eyebrow1", "eyebrow3", "eyebrow6", "eyebrow9", "female1", "female3"],
  nose: ["nose1", "nose2", "nose5", "nose9", "nose12", "small"],
  ear: ["ear1", "ear2", "ear3"],
  jersey: ["jersey", "jersey3", "hockey", "football"],
};
export const HAIR_BEHIND = ["female2", "female3", "female4"];
const TEAM_COLORS = ["#89bfd3", "#7a1319", "#07364f"];
const VIEW = 'viewBox="-25 105 450 450"'; // the row of the eyes stays in the upper half

/** A stream of uniform numbers for one face: mulberry32 seeded by a hash of its key. */
export function uniforms(key) {
  let state = 2166136261;
  for (const character of key) state = Math.imul(state ^ character.charCodeAt(0), 16777619);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

export const choose = (random, list) => list[Math.floor(random() * list.length)];

export function chooseValue(random, values) {
  let u = random();
  for (const [name, [probability]] of Object.entries(values)) {
    u -= probability;
    if (u < 0) return name;
  }
  return Object.keys(values)[0];
}

function caption(attributes) {
  const phrase = (name) => WORLD[name][attributes[name]][1];
  const bald = attributes.hair === "bald";
  const hair = bald ? "bald" : `${phrase("hair")} ${phrase("hair_color")} hair`;
  const rest = ["facial_hair", "glasses", "headwear", "smile"].map(phrase);
  return ["a face", phrase("skin"), hair, ...rest].filter(Boolean).join(", ");
}

/** Parts of a face that are numbers or coins, each from a uniform number. */
const range = (low, high) => (u) => low + (high - low) * u;
const coin = (u) => u < 0.5;
export const NUMBERS = {
  fatness: range(0, 1),
  bodySize: range(0.85, 1.05),
  earSize: range(0.5, 1.2),
  eyeAngle: (u) => Math.round(range(-10, 15)(u)),
  eyebrowAngle: (u) => Math.round(range(-15, 20)(u)),
  hairFlip: coin,
  mouthFlip: coin,
  noseFlip: coin,
  noseSize: range(0.6, 1.1),
};

const wearsHat = (headwear) => headwear === "cap" || headwear === "santa";

/** All parts of a random face; a hat turns curly hair into short and shows long hair behind the head. */
export function drawParts(random) {
  const parts = {};
  for (const [name, values] of Object.entries(WORLD)) {
    const value = chooseValue(random, values);
    parts[name] = [value, choose(random, values[value][2])];
  }
  const hidden = wearsHat(parts.headwear[0]) && parts.hair[0] === "long";
  parts.behind = hidden ? choose(random, HAIR_BEHIND) : "none";
  for (const [name, ids] of Object.entries(SHAPES)) parts[name] = choose(random, ids);
  for (const [name, number] of Object.entries(NUMBERS)) parts[name] = number(random());
  return parts;
}

/** Attributes and SVG of a face with some parts. */
export function build(parts) {
  const attributes = Object.fromEntries(Object.keys(WORLD).map((name) => [name, parts[name][0]]));
  const part = Object.fromEntries(Object.keys(WORLD).map((name) => [name, parts[name][1]]));
  const hat = wearsHat(attributes.headwear);
  if (hat && attributes.hair === "curly") [attributes.hair, part.hair] = ["short", "short"];
  const face = {
    fatness: parts.fatness,
    teamColors: TEAM_COLORS,
    hairBg: { id: hat && attributes.hair === "long" ? parts.behind : "none" },
    body: { id: "body", color: part.skin, size: parts.bodySize },
    jersey: { id: parts.jersey },
    ear: { id: parts.ear, size: parts.earSize },
    head: { id: parts.head, shave: "rgba(0,0,0,0)" },
    eyeLine: { id: "none" },
    smileLine: { id: "none", size: 1 },
    miscLine: { id: "none" },
    facialHair: { id: part.facial_hair },
    eye: { id: parts.eye, angle: parts.eyeAngle },
    eyebrow: { id: parts.eyebrow, angle: parts.eyebrowAngle },
    hair: { id: part.hair, color: part.hair_color, flip: parts.hairFlip },
    mouth: { id: part.smile, flip: parts.mouthFlip },
    nose: { id: parts.nose, flip: parts.noseFlip, size: parts.noseSize },
    glasses: { id: part.glasses },
    accessories: { id: part.headwear },
  };
  return { attributes: { ...attributes, caption: caption(attributes) }, svg: faceToSvgString(face) };
}

/** Picture of an SVG, a square of some pixels. */
export function rasterise(svg, size) {
  const framed = svg.replace('viewBox="0 0 400 600"', VIEW);
  const font = { loadSystemFonts: false }; // there is no text, and looking for fonts takes most of the time
  return new Resvg(framed, { background: "white", fitTo: { mode: "width", value: size }, font }).render();
}

/** The pixels of a picture without its alpha channel, as its background is opaque. */
export const rgb = (image) => image.pixels.filter((_, i) => i % 4 !== 3);

/** Header of a version 1.0 .npy file; its length must be a multiple of 64 bytes. */
function npyHeader(shape) {
  const dict = `{'descr': '|u1', 'fortran_order': False, 'shape': (${shape.join(", ")}), }`;
  const padded = dict.padEnd(Math.ceil((dict.length + 11) / 64) * 64 - 11) + "\n";
  const length = Buffer.alloc(2);
  length.writeUInt16LE(padded.length);
  return Buffer.concat([Buffer.from("\x93NUMPY\x01\x00", "latin1"), length, Buffer.from(padded, "latin1")]);
}

/** Opens folder/images.npy for a number of pictures, and returns what appends one. */
export function npyWriter(folder, count, size) {
  const file = fs.openSync(path.join(folder, "images.npy"), "w");
  fs.writeSync(file, npyHeader([count, size, size, 3]));
  return { append: (pixels) => fs.writeSync(file, pixels), close: () => fs.closeSync(file) };
}

/** Writes attributes.json, one entry a line. */
export function writeAttributes(folder, entries) {
  const lines = entries.map((entry) => "  " + JSON.stringify(entry));
  fs.writeFileSync(path.join(folder, "attributes.json"), `[\n${lines.join(",\n")}\n]\n`);
}

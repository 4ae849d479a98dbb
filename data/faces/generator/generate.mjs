// Draw cartoon faces with known attributes, always the same for the same split and index.
//
//   node generate.mjs --split train --count 60000 --out ../../../build/faces/train
//   node generate.mjs --split heldout --count 100 --png --out ../heldout
//
// Writes attributes.json (one entry a face: attributes and caption) and either images.npy
// (uint8, count x size x size x 3) or one PNG a face. Attributes are drawn independently
// (though a cap or a santa hat turns curly hair into short), so what a mask hides is independent of what it shows and the true share of, say, beards in a
// posterior is the probability written in WORLD.
import fs from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { Resvg } from "@resvg/resvg-js";
import { faceToSvgString } from "facesjs";

// [probability, caption phrase, ids or colours of facesjs]
const WORLD = {
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
const SHAPES = {
  head: ["head1", "head2", "head4", "head5", "head12", "head15", "head17", "female1"],
  eye: ["eye1", "eye3", "eye6", "eye9", "eye13", "female1", "female4", "female8"],
  eyebrow: ["eyebrow1", "eyebrow3", "eyebrow6", "eyebrow9", "female1", "female3"],
  nose: ["nose1", "nose2", "nose5", "nose9", "nose12", "small"],
  ear: ["ear1", "ear2", "ear3"],
  jersey: ["jersey", "jersey3", "hockey", "football"],
};
const HAIR_BEHIND = ["female2", "female3", "female4"];
const TEAM_COLORS = ["#89bfd3", "#7a1319", "#07364f"];
const VIEW = 'viewBox="-25 105 450 450"'; // the row of the eyes stays in the upper half

/** A stream of uniform numbers for one face: mulberry32 seeded by a hash of its key. */
function uniforms(key) {
  let state = 2166136261;
  for (const character of key) state = Math.imul(state ^ character.charCodeAt(0), 16777619);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const choose = (random, list) => list[Math.floor(random() * list.length)];

function chooseValue(random, values) {
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

function draw(split, index) {
  const random = uniforms(`${split}/${index}`);
  const attributes = {};
  const part = {};
  for (const [name, values] of Object.entries(WORLD)) {
    attributes[name] = chooseValue(random, values);
    part[name] = choose(random, values[attributes[name]][2]);
  }
  const hat = attributes.headwear === "cap" || attributes.headwear === "santa";
  if (hat && attributes.hair === "curly") [attributes.hair, part.hair] = ["short", "short"];
  // facesjs draws no long hair under a hat: show it behind the head
  const behind = hat && attributes.hair === "long" ? choose(random, HAIR_BEHIND) : "none";
  const shape = Object.fromEntries(Object.entries(SHAPES).map(([k, ids]) => [k, choose(random, ids)]));
  const between = (low, high) => low + (high - low) * random();
  const coin = () => random() < 0.5;
  const face = {
    fatness: between(0, 1),
    teamColors: TEAM_COLORS,
    hairBg: { id: behind },
    body: { id: "body", color: part.skin, size: between(0.85, 1.05) },
    jersey: { id: shape.jersey },
    ear: { id: shape.ear, size: between(0.5, 1.2) },
    head: { id: shape.head, shave: "rgba(0,0,0,0)" },
    eyeLine: { id: "none" },
    smileLine: { id: "none", size: 1 },
    miscLine: { id: "none" },
    facialHair: { id: part.facial_hair },
    eye: { id: shape.eye, angle: Math.round(between(-10, 15)) },
    eyebrow: { id: shape.eyebrow, angle: Math.round(between(-15, 20)) },
    hair: { id: part.hair, color: part.hair_color, flip: coin() },
    mouth: { id: part.smile, flip: coin() },
    nose: { id: shape.nose, flip: coin(), size: between(0.6, 1.1) },
    glasses: { id: part.glasses },
    accessories: { id: part.headwear },
  };
  return { attributes: { ...attributes, caption: caption(attributes) }, svg: faceToSvgString(face) };
}

function rasterise(svg, size) {
  const framed = svg.replace('viewBox="0 0 400 600"', VIEW);
  return new Resvg(framed, { background: "white", fitTo: { mode: "width", value: size } }).render();
}

/** Header of a version 1.0 .npy file; its length must be a multiple of 64 bytes. */
function npyHeader(shape) {
  const dict = `{'descr': '|u1', 'fortran_order': False, 'shape': (${shape.join(", ")}), }`;
  const padded = dict.padEnd(Math.ceil((dict.length + 11) / 64) * 64 - 11) + "\n";
  const length = Buffer.alloc(2);
  length.writeUInt16LE(padded.length);
  return Buffer.concat([Buffer.from("\x93NUMPY\x01\x00", "latin1"), length, Buffer.from(padded, "latin1")]);
}

const { values: options } = parseArgs({
  options: {
    split: { type: "string", default: "train" },
    count: { type: "string", default: "100" },
    start: { type: "string", default: "0" },
    size: { type: "string", default: "64" },
    png: { type: "boolean", default: false },
    out: { type: "string" },
  },
});
const [count, start, size] = [options.count, options.start, options.size].map(Number);
if (!options.out || ![count, start, size].every(Number.isInteger) || count < 1 || size < 8) {
  console.error("usage: node generate.mjs --split NAME --count N --out FOLDER [--start N] [--size PIXELS] [--png]");
  process.exit(2);
}
fs.mkdirSync(options.out, { recursive: true });
const npy = options.png ? null : fs.openSync(path.join(options.out, "images.npy"), "w");
if (npy) fs.writeSync(npy, npyHeader([count, size, size, 3]));
const entries = [];
for (let index = start; index < start + count; index++) {
  const { attributes, svg } = draw(options.split, index);
  const image = rasterise(svg, size);
  if (npy) {
    fs.writeSync(npy, image.pixels.filter((_, i) => i % 4 !== 3)); // opaque white background: drop alpha
    entries.push(attributes);
  } else {
    const file = `${String(index).padStart(3, "0")}.png`;
    fs.writeFileSync(path.join(options.out, file), image.asPng());
    entries.push({ file, ...attributes });
  }
}
if (npy) fs.closeSync(npy);
const lines = entries.map((entry) => "  " + JSON.stringify(entry));
fs.writeFileSync(path.join(options.out, "attributes.json"), `[\n${lines.join(",\n")}\n]\n`);

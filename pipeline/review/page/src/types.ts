// What data.json holds; IMAGE indices count into the columns of Images.

export type Word = "strong" | "weak" | "none";

export interface Group {
  number: number;
  name: string;
  suggested: string;
  word: Word;
  size: number;
  ignored: boolean;
  states: Record<string, number>;
  prototypes: number[];
  least_sure: number[];
  random: number[];
  similar: { group: number; similarity: number }[];
  classes: [string, number][];
  can_split: boolean;
}

export interface Images {
  source: string[];
  group: number[];
  state: number[];
  probability: number[];
  runner_up: number[];
  split: string[];
  date: string[];
  x: number[];
  y: number[];
  answered: number[];
  label: string[];
}

export interface Question {
  image: number;
  group: number;
  runner_up: number;
  own: number[];
  other: number[];
}

export interface Promise30 {
  checked: number;
  right: number;
  low: number;
  high: number;
  void: boolean;
}

export interface More {
  kmeans: { agreement: number; acc: number | null; acc_result: number | null } | null;
  settings: string;
  charts: { title: string; text: string; svg: string }[];
  scores: [string, string][];
}

export interface Data {
  mode: "review" | "report";
  project: string;
  version: number;
  run: { images: number; number: number; low: number; high: number; given: boolean; labels: boolean; edited: boolean };
  verdict: { word: Word; why: string[]; try: string[] };
  counts: Record<string, number>;
  promise: Promise30 | null;
  check?: { images: number[]; right: (boolean | null)[] }; // drawn for the promise, and what was said of each
  groups: Group[];
  images: Images;
  questions: Question[];
  copies: number[][];
  odd: { dark: number[]; blurred: number[]; outliers: number[] };
  rejected: { source: string; kind: string; reason: string }[];
  more: More | null;
  thumbs?: Record<string, string>;
}

export type Edit =
  | { action: "name"; group: number; name: string }
  | { action: "merge"; groups: number[] }
  | { action: "split"; group: number; parts: number }
  | { action: "move"; images: number[]; group: number }
  | { action: "answer"; image: number; group: number | null }
  | { action: "ignore"; group: number; ignored: boolean }
  | { action: "suggested" }
  | { action: "check"; image: number; right: boolean }
  | { action: "undo" };

/** The order of Images.state. */
export const STATES = ["sure", "to check", "fits nowhere"] as const;

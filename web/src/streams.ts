/** A stream that the publisher offers. Problem is the publisher's own word on what is wrong with it, or "". */
export interface Stream {
  name: string;
  url: string;
  problem: string;
}

/** Reads the answer of /api/v1/streams. Entries without a name and a usable URL are left out; the rest is optional. */
export function parseStreams(answer: unknown, base: string): Stream[] {
  const list = isObject(answer) ? answer.streams : undefined;
  if (!Array.isArray(list)) return [];
  const streams: Stream[] = [];
  for (const entry of list as unknown[]) {
    if (!isObject(entry) || typeof entry.name !== "string" || entry.name === "" || typeof entry.url !== "string") continue;
    const url = httpURL(entry.url, base);
    if (url === "" || streams.some((s) => s.name === entry.name)) continue;
    streams.push({ name: entry.name, url, problem: typeof entry.problem === "string" ? entry.problem : "" });
  }
  return streams;
}

/** The stream that was asked for; without a wish the first. */
export function choose(streams: Stream[], wanted: string): Stream | undefined {
  return wanted === "" ? streams[0] : streams.find((s) => s.name === wanted);
}

/** Asks the publisher which streams it has. Throws an error fit to be shown. */
export async function fetchStreams(): Promise<Stream[]> {
  let response: Response;
  try {
    response = await fetch("/api/v1/streams", { cache: "no-store", signal: AbortSignal.timeout(5000) });
  } catch {
    throw new Error("The publisher does not answer.");
  }
  if (!response.ok) throw new Error(`The publisher answered with an error (${response.status}).`);
  try {
    return parseStreams(await response.json(), location.href);
  } catch {
    throw new Error("The publisher’s answer could not be read.");
  }
}

/** True when the playlist at url is there and may still grow; false when it ended or cannot be had. */
export async function isLive(url: string): Promise<boolean> {
  try {
    const text = await fetchText(url);
    const variant = firstVariant(text);
    return !hasEnded(variant === "" ? text : await fetchText(new URL(variant, url).href));
  } catch {
    return false;
  }
}

/** The URI of the first variant in a multivariant playlist (RFC 8216 section 4.3.4.2); "" for a media playlist. */
export function firstVariant(playlist: string): string {
  const lines = playlist.split(/\r?\n/);
  const at = lines.findIndex((line) => line.startsWith("#EXT-X-STREAM-INF:"));
  return at < 0 ? "" : (lines.slice(at + 1).find((line) => line !== "" && !line.startsWith("#")) ?? "");
}

/** True for a media playlist that says it will not grow (RFC 8216 section 4.3.3.4). */
export function hasEnded(playlist: string): boolean {
  return /^#EXT-X-ENDLIST\s*$/m.test(playlist);
}

async function fetchText(url: string): Promise<string> {
  const response = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return response.text();
}

function httpURL(url: string, base: string): string {
  try {
    const absolute = new URL(url, base);
    return absolute.protocol === "http:" || absolute.protocol === "https:" ? absolute.href : "";
  } catch {
    return "";
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

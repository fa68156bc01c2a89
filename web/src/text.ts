import type { Share } from "./bytes";

/** What the line below the picture says. Unknown values are left out. */
export interface Facts {
  share: Share | null; // null where the browser's own player hides it
  startupMs: number | null;
  stalls: number;
  stallSeconds: number;
  latency: number | null; // seconds behind the live edge
  height: number; // of the picture, in lines; 0 unknown
  bitrate: number; // bit/s; 0 unknown
}

/** The facts as short phrases, in the order in which they are shown. */
export function phrases(f: Facts): string[] {
  const out: string[] = [];
  const share = f.share && shareText(f.share);
  if (share) out.push(share);
  if (f.startupMs !== null) out.push(`started in ${seconds(f.startupMs / 1000)}`);
  if (f.startupMs !== null) out.push(stallText(f.stalls, f.stallSeconds));
  if (f.latency !== null && f.latency >= 0) out.push(`${seconds(f.latency)} behind live`);
  const picture = [f.height > 0 ? `${f.height}p` : "", f.bitrate > 0 ? bitrate(f.bitrate) : ""].filter(Boolean);
  if (picture.length > 0) out.push(picture.join(", "));
  return out;
}

/** Who sent the bytes, as in "97% from 5 boxes, 3% from the origin"; "" before the first byte. */
export function shareText(s: Share): string {
  const total = s.boxBytes + s.originBytes;
  if (total === 0) return "";
  const boxes = s.boxes === 1 ? "1 box" : `${s.boxes} boxes`;
  if (s.originBytes === 0) return `all from ${boxes}`;
  if (s.boxBytes === 0) return "all from the origin";
  const percent = Math.round((100 * s.boxBytes) / total);
  // Rounding must not turn a small part into none.
  if (percent === 100) return `over 99% from ${boxes}, under 1% from the origin`;
  if (percent === 0) return `under 1% from ${boxes}, over 99% from the origin`;
  return `${percent}% from ${boxes}, ${100 - percent}% from the origin`;
}

export function stallText(stalls: number, total: number): string {
  if (stalls === 0) return "no stalls";
  return `${stalls === 1 ? "1 stall" : `${stalls} stalls`} (${seconds(total)})`;
}

export function seconds(s: number): string {
  return s < 99.95 ? `${s.toFixed(1)} s` : `${Math.round(s)} s`;
}

export function bitrate(bitsPerSecond: number): string {
  return bitsPerSecond < 1e6 ? `${Math.round(bitsPerSecond / 1e3)} kbit/s` : `${(bitsPerSecond / 1e6).toFixed(1)} Mbit/s`;
}

export function byteSize(bytes: number): string {
  if (bytes < 1e3) return `${bytes} B`;
  if (bytes < 1e6) return `${Math.round(bytes / 1e3)} KB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

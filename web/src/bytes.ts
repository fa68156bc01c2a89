/** Counts the segment bytes that this viewer received, by the host that finally sent them. */
export class ByteAccount {
  readonly #byHost = new Map<string, number>();

  /** Adds bytes that came from url, which is the address after all redirects. */
  add(url: string, bytes: number): void {
    const host = hostOf(url);
    if (host === "" || !(bytes > 0)) return;
    this.#byHost.set(host, (this.#byHost.get(host) ?? 0) + bytes);
  }

  /** Bytes by host (`name:port`), most first. */
  byHost(): Record<string, number> {
    return Object.fromEntries([...this.#byHost].sort((a, b) => b[1] - a[1]));
  }

  /** What came from origin and what from the other hosts, each of which is a box. */
  share(origin: string): Share {
    const share: Share = { boxes: 0, boxBytes: 0, originBytes: 0 };
    for (const [host, bytes] of this.#byHost) {
      if (host === origin) {
        share.originBytes += bytes;
      } else {
        share.boxes++;
        share.boxBytes += bytes;
      }
    }
    return share;
  }
}

/** Who sent the bytes: boxes is the number of boxes that sent any. */
export interface Share {
  boxes: number;
  boxBytes: number;
  originBytes: number;
}

/** The `name:port` of an absolute URL; "" when it has none. */
export function hostOf(url: string): string {
  try {
    return new URL(url).host;
  } catch {
    return "";
  }
}

import { expect, test } from "vitest";
import { Backoff } from "./backoff";
import { config, Pace, Patience, segmentLoadMs, verdict } from "./policy";

test("the first byte may take one second, three times over, then longer", () => {
  const patience = new Patience();
  const limits = Array.from({ length: 8 }, () => {
    const limit = patience.firstByteMs;
    patience.timedOut();
    return limit;
  });
  expect(limits).toEqual([1000, 1000, 1000, 2000, 4000, 8000, 8000, 8000]);
});

test("a slow line keeps a longer limit, a quick one returns to a second", () => {
  const patience = new Patience();
  patience.timedOut();
  patience.loaded(1500);
  expect(patience.firstByteMs).toBe(3000);
  patience.loaded(80);
  expect(patience.firstByteMs).toBe(1000);
});

test("no further byte for a second is silence, for longer on a line that halts", () => {
  const patience = new Patience();
  const limits = Array.from({ length: 7 }, () => {
    const limit = patience.silenceMs;
    patience.timedOut();
    return limit;
  });
  expect(limits).toEqual([1000, 1000, 1000, 2000, 4000, 8000, 8000]);
  patience.loaded(1500); // a slow answer says nothing of the bytes after it
  expect(patience.silenceMs).toBe(1000);
  const at = (sinceLastMs: number, loaded: number) => verdict({ sinceFirstMs: 5000, sinceLastMs, loaded, total: 1000 }, 1000, 0);
  expect([at(999, 10), at(1000, 10), at(1000, 0), at(1000, 1000)]).toEqual([null, "silent", "silent", null]);
});

test.each([
  // loaded, total, since the first byte, plays; the same as in pkg/watch
  ["half in half the time", 500, 1000, 1000, 2000, null],
  ["a little less", 499, 1000, 1000, 2000, "slow"],
  ["too soon to say", 1, 1000, 999, 2000, null],
  ["length unknown", 1, 0, 5000, 2000, null],
  ["late, but nearly there", 900, 1000, 5000, 2000, null],
  ["fell behind after its half", 600, 1000, 3000, 2000, "slow"],
  ["a long one", 200, 1000, 1000, 6000, null],
  ["a short one, nearly there", 700, 1000, 1000, 500, null],
  ["a short one", 600, 1000, 1000, 500, "slow"],
  ["whole", 1000, 1000, 5000, 2000, null],
  ["at any rate", 1, 1000, 5000, 0, null],
])("slower than it plays: %s", (_, loaded, total, sinceFirstMs, plays, want) => {
  expect(verdict({ sinceFirstMs, sinceLastMs: 0, loaded, total }, 1000, plays)).toBe(want);
});

test("a slow segment is given up once, and none for a while after two", () => {
  const pace = new Pace();
  const judges = (segment: number, now: number) => pace.judges(segment, now);
  expect(judges(1, 0)).toBe(true);
  pace.gaveUp(1, 1000);
  expect([judges(1, 1000), judges(2, 1000)]).toEqual([false, true]);
  pace.loaded(1001, 2000); // not so quick that it was the other host alone
  pace.gaveUp(2, 2000);
  expect([judges(3, 2000), judges(3, 31_999), judges(3, 32_000)]).toEqual([false, false, true]);
  pace.gaveUp(3, 33_000);
  expect(judges(4, 33_000)).toBe(true);
});

test("a quick segment shows that it was not the line", () => {
  const pace = new Pace();
  pace.gaveUp(1, 1000);
  pace.loaded(1000, 2000);
  pace.gaveUp(2, 2000);
  expect(pace.judges(3, 2000)).toBe(true);
  pace.gaveUp(3, 3000);
  expect(pace.judges(4, 3000)).toBe(false);
  pace.loaded(500, 600); // as if it played a second
  expect(pace.judges(5, 3000)).toBe(true);
});

test("a segment may take two target durations", () => {
  expect(segmentLoadMs(6)).toBe(12_000);
  expect(segmentLoadMs(1)).toBe(2000);
});

test("what a box answers is retried, and what nobody has is given up soon", () => {
  const retry = config().fragLoadPolicy!.default.errorRetry!;
  const attempts = (code: number | undefined, usual: boolean) => {
    let count = 0;
    while (retry.shouldRetry!(retry, count, false, code === undefined ? undefined : { url: "", code }, usual)) count++;
    return count;
  };
  expect(attempts(0, false)).toBe(13); // connection refused, reset or cut
  expect(attempts(503, true)).toBe(13);
  expect(attempts(404, false)).toBe(8);
  expect(attempts(undefined, false)).toBe(0); // not a load error: hls.js decides
});

test("retries are immediate at first and never a burst", () => {
  const retry = config().fragLoadPolicy!.default.errorRetry!;
  const delays = Array.from({ length: retry.maxNumRetry }, (_, i) => Math.min(retry.retryDelayMs * 2 ** i, retry.maxRetryDelayMs));
  expect(delays[0]! + delays[1]! + delays[2]!).toBeLessThan(100);
  expect(delays.reduce((a, b) => a + b)).toBeGreaterThan(5000);
});

test("each player has its own limits to adjust", () => {
  config().fragLoadPolicy!.default.maxLoadTimeMs = 1;
  expect(config().fragLoadPolicy!.default.maxLoadTimeMs).not.toBe(1);
});

test("backoff doubles up to its limit and begins again", () => {
  const wait = new Backoff(500, 3000, () => 0);
  expect([wait.next(), wait.next(), wait.next(), wait.next(), wait.next()]).toEqual([500, 1000, 2000, 3000, 3000]);
  wait.reset();
  expect(wait.next()).toBe(500);
  expect(new Backoff(1000, 1000, () => 1).next()).toBe(750);
});

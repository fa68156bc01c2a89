import { expect, test } from "vitest";
import { Backoff } from "./backoff";
import { config, Patience, segmentLoadMs } from "./policy";

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

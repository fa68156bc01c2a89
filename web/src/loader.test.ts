import Hls, { type FragmentLoaderContext, type LoaderCallbacks, type LoaderConfiguration } from "hls.js";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { watchfulLoader } from "./loader";
import { config, Pace, Patience } from "./policy";

/** What hls.js' loader uses of a request, answered by the test. */
class Request {
  static last: Request;
  readyState = 0;
  status = 0;
  response: ArrayBuffer | null = null;
  responseURL = "";
  responseType = "";
  onreadystatechange: (() => void) | null = null;
  onprogress: ((event: { loaded: number; total: number; lengthComputable: boolean }) => void) | null = null;
  aborted = false;

  open(): void {
    this.readyState = 1;
  }
  send(): void {
    Request.last = this;
  }
  abort(): void {
    this.aborted = true;
  }
  headers(): void {
    this.status = 200;
    this.readyState = 2;
    this.onreadystatechange?.();
  }
  bytes(loaded: number, total: number): void {
    this.readyState = 3;
    this.onprogress?.({ loaded, total, lengthComputable: total > 0 });
  }
  whole(length: number): void {
    this.response = new ArrayBuffer(length);
    this.readyState = 4;
    this.onreadystatechange?.();
  }
}

beforeEach(() => {
  vi.useFakeTimers({ now: 5000, toFake: ["setTimeout", "clearTimeout", "setInterval", "clearInterval", "performance"] });
  vi.advanceTimersByTime(5000);
  vi.stubGlobal("self", globalThis);
  vi.stubGlobal("XMLHttpRequest", Request);
});

afterEach(() => {
  expect(vi.getTimerCount()).toBe(0); // each test ends its load
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

/** Begins to load a segment of two seconds, and tells what hls.js would be told. */
function begin({ sn = 7 as number | "initSegment", patience = new Patience(), pace = new Pace() } = {}) {
  const Loader = watchfulLoader(patience, () => pace);
  const loader = new Loader(Hls.DefaultConfig);
  const told: string[] = [];
  const callbacks: LoaderCallbacks<FragmentLoaderContext> = {
    onSuccess: () => told.push("success"),
    onError: () => told.push("error"),
    onTimeout: (stats) => told.push(`timeout with ${stats.loaded}${stats.aborted ? ", aborted" : ""}`),
    onAbort: () => told.push("abort"),
  };
  const policy = { ...config().fragLoadPolicy!.default, errorRetry: null, timeoutRetry: null, maxLoadTimeMs: 4000 };
  const limits = { loadPolicy: policy, timeout: 4000, maxRetry: 0, retryDelay: 0, maxRetryDelay: 0 } as LoaderConfiguration;
  const frag = { sn, type: "main", duration: 2 };
  loader.load({ url: "http://front/7.ts", responseType: "arraybuffer", frag, part: null } as unknown as FragmentLoaderContext, limits, callbacks);
  return { loader, told, limits, request: Request.last, pace };
}

test("a body that stands still ends as a timeout a second after its last byte", () => {
  const { loader, told, limits, request } = begin();
  vi.advanceTimersByTime(200);
  request.headers();
  vi.advanceTimersByTime(300);
  request.bytes(600, 1000);
  vi.advanceTimersByTime(900);
  expect(told).toEqual([]);
  vi.advanceTimersByTime(200);
  expect(told).toEqual(["timeout with 600, aborted"]);
  expect(request.aborted).toBe(true);
  expect(limits.timeout).toBeGreaterThanOrEqual(1500); // told in the error
  expect(limits.timeout).toBeLessThanOrEqual(1600);
  loader.destroy();
});

test("headers without a body are silence too", () => {
  const { told, request } = begin();
  request.headers();
  vi.advanceTimersByTime(1100);
  expect(told).toEqual(["timeout with 0, aborted"]);
});

test("a segment slower than it plays is given up once", () => {
  const drip = (request: Request) => {
    request.headers();
    for (let loaded = 0; loaded < 300; loaded += 30) {
      vi.advanceTimersByTime(100);
      request.bytes(loaded, 1000);
    }
    vi.advanceTimersByTime(100);
  };
  const first = begin();
  drip(first.request);
  expect(first.told).toEqual(["timeout with 240, aborted"]);
  const second = begin({ pace: first.pace });
  drip(second.request);
  expect(second.told).toEqual([]);
  second.request.whole(1000);
  expect(second.told).toEqual(["success"]);
});

test("an init segment may come at any rate", () => {
  const { told, request } = begin({ sn: "initSegment" });
  request.headers();
  for (let loaded = 1; loaded < 30; loaded++) {
    vi.advanceTimersByTime(100);
    request.bytes(loaded, 1000);
  }
  expect(told).toEqual([]);
  request.whole(1000);
  expect(told).toEqual(["success"]);
});

test("a quick segment is told to its pace, and its statistics are whole", () => {
  const pace = new Pace();
  pace.gaveUp(5, performance.now());
  pace.gaveUp(6, performance.now());
  const { loader, told, request } = begin({ pace });
  request.headers();
  vi.advanceTimersByTime(300);
  request.bytes(500, 1000);
  request.whole(1000);
  expect(told).toEqual(["success"]);
  expect(loader.stats).toMatchObject({ loaded: 1000, total: 1000, aborted: false, retry: 0 });
  expect(pace.judges(8, performance.now())).toBe(true);
});

test("the limits of hls.js stand: the first byte, and the whole", () => {
  const early = begin();
  vi.advanceTimersByTime(1000);
  expect(early.told).toEqual(["timeout with 0, aborted"]);
  const late = begin({ sn: "initSegment" });
  late.request.headers();
  for (let loaded = 1; loaded < 50; loaded++) {
    vi.advanceTimersByTime(100);
    late.request.bytes(loaded, 0);
  }
  expect(late.told).toEqual(["timeout with 39, aborted"]);
});

test("who is aborted or destroyed says nothing later", () => {
  for (const end of ["abort", "destroy"] as const) {
    const { loader, told, request } = begin();
    request.headers();
    vi.advanceTimersByTime(500);
    loader[end]();
    expect(vi.getTimerCount()).toBe(0);
    vi.advanceTimersByTime(5000);
    expect(told).toEqual(end === "abort" ? ["abort"] : []);
    expect(request.aborted).toBe(true);
  }
});

test("an error is told, and nothing after it", () => {
  const { told, request } = begin();
  request.headers();
  request.status = 404;
  request.whole(10);
  expect(told).toEqual(["error"]);
  expect(vi.getTimerCount()).toBe(0);
});

test("a line that halts is given longer", () => {
  const patience = new Patience();
  for (let i = 0; i < 3; i++) patience.timedOut();
  const { told, request } = begin({ patience });
  request.headers();
  vi.advanceTimersByTime(1900);
  expect(told).toEqual([]);
  vi.advanceTimersByTime(300);
  expect(told.length).toBe(1);
});

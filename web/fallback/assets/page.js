// src/native.ts
/** True when the browser itself plays HLS. */
function nativeSupported(video) {
	return video.canPlayType("application/vnd.apple.mpegurl") !== "";
}
/** Plays url with the browser's own HLS, which tells neither the hosts nor the sizes of segments. */
function nativePlayer(video, url, events) {
	const onError = () => {
		const reason = describe(video.error);
		events.error(video.error?.message || reason, reason, true);
		events.failed(reason);
	};
	video.addEventListener("error", onError);
	video.crossOrigin = "anonymous";
	video.src = url;
	return {
		kind: "native",
		latency() {
			const { seekable } = video;
			if (Number.isFinite(video.duration) || seekable.length === 0) return null;
			return seekable.end(seekable.length - 1) - video.currentTime;
		},
		bitrate: () => 0,
		destroy() {
			video.removeEventListener("error", onError);
			video.removeAttribute("src");
			video.load();
		}
	};
}
function describe(error) {
	switch (error?.code) {
		case MediaError.MEDIA_ERR_NETWORK: return "The stream cannot be loaded.";
		case MediaError.MEDIA_ERR_DECODE: return "The picture cannot be decoded.";
		default: return "The stream cannot be played.";
	}
}
// src/text.ts
/** The facts as short phrases, in the order in which they are shown. */
function phrases(f) {
	const out = [];
	const share = f.share && shareText(f.share);
	if (share) out.push(share);
	if (f.startupMs !== null) out.push(`started in ${seconds(f.startupMs / 1e3)}`);
	if (f.startupMs !== null) out.push(stallText(f.stalls, f.stallSeconds));
	if (f.latency !== null && f.latency >= 0) out.push(`${seconds(f.latency)} behind live`);
	const picture = [f.height > 0 ? `${f.height}p` : "", f.bitrate > 0 ? bitrate(f.bitrate) : ""].filter(Boolean);
	if (picture.length > 0) out.push(picture.join(", "));
	return out;
}
/** Who sent the bytes, as in "97% from 5 boxes, 3% from the origin"; "" before the first byte. */
function shareText(s) {
	const total = s.boxBytes + s.originBytes;
	if (total === 0) return "";
	const boxes = s.boxes === 1 ? "1 box" : `${s.boxes} boxes`;
	if (s.originBytes === 0) return `all from ${boxes}`;
	if (s.boxBytes === 0) return "all from the origin";
	const percent = Math.round(100 * s.boxBytes / total);
	if (percent === 100) return `over 99% from ${boxes}, under 1% from the origin`;
	if (percent === 0) return `under 1% from ${boxes}, over 99% from the origin`;
	return `${percent}% from ${boxes}, ${100 - percent}% from the origin`;
}
function stallText(stalls, total) {
	if (stalls === 0) return "no stalls";
	return `${stalls === 1 ? "1 stall" : `${stalls} stalls`} (${seconds(total)})`;
}
function seconds(s) {
	return s < 99.95 ? `${s.toFixed(1)} s` : `${Math.round(s)} s`;
}
function bitrate(bitsPerSecond) {
	return bitsPerSecond < 1e6 ? `${Math.round(bitsPerSecond / 1e3)} kbit/s` : `${(bitsPerSecond / 1e6).toFixed(1)} Mbit/s`;
}
function byteSize(bytes) {
	if (bytes < 1e3) return `${bytes} B`;
	if (bytes < 1e6) return `${Math.round(bytes / 1e3)} KB`;
	return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}
// src/backoff.ts
/** Waiting times that double from first to most (ms), each shortened by chance by up to a quarter. */
var Backoff = class {
	first;
	most;
	random;
	#next;
	constructor(first, most, random = Math.random) {
		this.first = first;
		this.most = most;
		this.random = random;
		this.#next = first;
	}
	/** How long to wait before the next attempt, in milliseconds. */
	next() {
		const wait = this.#next * (1 - this.random() / 4);
		this.#next = Math.min(2 * this.#next, this.most);
		return wait;
	}
	/** Begins again at the shortest wait. */
	reset() {
		this.#next = this.first;
	}
};
// src/bytes.ts
/** Counts the segment bytes that this viewer received, by the host that finally sent them. */
var ByteAccount = class {
	#byHost = /* @__PURE__ */ new Map();
	/** Adds bytes that came from url, which is the address after all redirects. */
	add(url, bytes) {
		const host = hostOf(url);
		if (host === "" || !(bytes > 0)) return;
		this.#byHost.set(host, (this.#byHost.get(host) ?? 0) + bytes);
	}
	/** Bytes by host (`name:port`), most first. */
	byHost() {
		return Object.fromEntries([...this.#byHost].sort((a, b) => b[1] - a[1]));
	}
	/** What came from origin and what from the other hosts, each of which is a box. */
	share(origin) {
		const share = {
			boxes: 0,
			boxBytes: 0,
			originBytes: 0
		};
		for (const [host, bytes] of this.#byHost) if (host === origin) share.originBytes += bytes;
		else {
			share.boxes++;
			share.boxBytes += bytes;
		}
		return share;
	}
};
/** The `name:port` of an absolute URL; "" when it has none. */
function hostOf(url) {
	try {
		return new URL(url).host;
	} catch {
		return "";
	}
}
/**
* Measures playback from samples of the position alone, so that it counts the same for every player: seconds
* played, stalls and their length. Pauses, the viewer's own seeks and the end are not stalls. Jumps that the player
* makes, over a hole or to the live edge, are its attempts to get going: they neither begin nor end a stall.
*/
var Meter = class {
	playedSeconds = 0;
	stalls = 0;
	#stalledMs = 0;
	#last = null;
	#movedAt = 0;
	#moving = false;
	#stalled = false;
	/** Takes the next sample. Call about ten times a second. */
	take(s) {
		const last = this.#last;
		this.#last = s;
		if (!last) return;
		if (s.paused || s.ended || s.sought) {
			this.#close(s.now);
			this.#moving = false;
			return;
		}
		const step = s.position - last.position;
		const most = 2 * (s.now - last.now) / 1e3 + .5;
		if (step > 0 && step <= most) {
			this.playedSeconds += step;
			this.#close(s.now);
			this.#moving = true;
			this.#movedAt = s.now;
		} else if (this.#moving && !this.#stalled && s.now - this.#movedAt >= 250) {
			this.#stalled = true;
			this.stalls++;
		}
	}
	/** Starts a new stretch after the player was replaced: a running stall goes on, the position may jump. */
	restart() {
		this.#last = null;
	}
	/** True while playback stands still against the viewer's will. */
	get stalled() {
		return this.#stalled;
	}
	/** Seconds of all stalls, the running one up to the last sample. */
	get stallSeconds() {
		const running = this.#stalled && this.#last ? this.#last.now - this.#movedAt : 0;
		return (this.#stalledMs + running) / 1e3;
	}
	#close(now) {
		if (this.#stalled) this.#stalledMs += now - this.#movedAt;
		this.#stalled = false;
	}
};
// src/streams.ts
/** Reads the answer of /api/v1/streams. Entries without a name and a usable URL are left out; the rest is optional. */
function parseStreams(answer, base) {
	const list = isObject(answer) ? answer.streams : void 0;
	if (!Array.isArray(list)) return [];
	const streams = [];
	for (const entry of list) {
		if (!isObject(entry) || typeof entry.name !== "string" || entry.name === "" || typeof entry.url !== "string") continue;
		const url = httpURL(entry.url, base);
		if (url === "" || streams.some((s) => s.name === entry.name)) continue;
		streams.push({
			name: entry.name,
			url,
			problem: typeof entry.problem === "string" ? entry.problem : ""
		});
	}
	return streams;
}
/** The stream that was asked for; without a wish the first. */
function choose(streams, wanted) {
	return wanted === "" ? streams[0] : streams.find((s) => s.name === wanted);
}
/** Asks the publisher which streams it has. Throws an error fit to be shown. */
async function fetchStreams() {
	let response;
	try {
		response = await fetch("/api/v1/streams", {
			cache: "no-store",
			signal: AbortSignal.timeout(5e3)
		});
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
async function isLive(url) {
	try {
		const text = await fetchText(url);
		const variant = firstVariant(text);
		return !hasEnded(variant === "" ? text : await fetchText(new URL(variant, url).href));
	} catch {
		return false;
	}
}
/** The URI of the first variant in a multivariant playlist (RFC 8216 section 4.3.4.2); "" for a media playlist. */
function firstVariant(playlist) {
	const lines = playlist.split(/\r?\n/);
	const at = lines.findIndex((line) => line.startsWith("#EXT-X-STREAM-INF:"));
	return at < 0 ? "" : lines.slice(at + 1).find((line) => line !== "" && !line.startsWith("#")) ?? "";
}
/** True for a media playlist that says it will not grow (RFC 8216 section 4.3.3.4). */
function hasEnded(playlist) {
	return /^#EXT-X-ENDLIST\s*$/m.test(playlist);
}
async function fetchText(url) {
	const response = await fetch(url, {
		cache: "no-store",
		signal: AbortSignal.timeout(5e3)
	});
	if (!response.ok) throw new Error(`${url}: ${response.status}`);
	return response.text();
}
function httpURL(url, base) {
	try {
		const absolute = new URL(url, base);
		return absolute.protocol === "http:" || absolute.protocol === "https:" ? absolute.href : "";
	} catch {
		return "";
	}
}
function isObject(value) {
	return typeof value === "object" && value !== null;
}
// src/session.ts
var SAMPLE_MS = 100;
var NO_PROGRESS_MS = 15e3;
var RETRY_MS = [500, 2500];
var REFRESH_MS = 15e3;
var HAND_MS = 1e3;
var KEPT_ERRORS = 100;
/** What was measured since the stream was chosen. */
var Measured = class {
	bytes = new ByteAccount();
	meter = new Meter();
	errors = [];
	fatalErrors = [];
	startupMs = null;
	startedAt = performance.now();
};
/** Finds a stream, plays it, and does so again whenever it ends or breaks. Never gives up, never hammers. */
var Session = class {
	video;
	makePlayer;
	view;
	wanted;
	measured = new Measured();
	stream = null;
	player = null;
	#finish = () => {};
	#wake = () => {};
	#pausedByViewer = false;
	#blocked = false;
	#sought = false;
	#inputAt = Number.NEGATIVE_INFINITY;
	#outage = false;
	#wasLive = false;
	#trouble = "";
	#progressAt = 0;
	#position = 0;
	#again = new Backoff(...RETRY_MS);
	constructor(video, makePlayer, view, wanted) {
		this.video = video;
		this.makePlayer = makePlayer;
		this.view = view;
		this.wanted = wanted;
		video.addEventListener("pause", () => this.#pausedByViewer = !video.ended && video.readyState > 0);
		video.addEventListener("play", () => this.#pausedByViewer = this.#blocked = false);
		for (const type of [
			"pointerdown",
			"pointermove",
			"keydown"
		]) video.addEventListener(type, (event) => {
			if (type !== "pointermove" || event.buttons !== 0) this.#inputAt = performance.now();
		});
		video.addEventListener("seeking", () => this.#sought ||= performance.now() - this.#inputAt < HAND_MS);
		video.addEventListener("ended", () => this.#finish({ why: "ended" }));
		window.addEventListener("online", () => this.#wake());
		document.addEventListener("visibilitychange", () => document.hidden || this.#wake());
		video.addEventListener("playing", () => {
			if ("requestVideoFrameCallback" in video) video.requestVideoFrameCallback(() => this.#started());
			else this.#started();
		});
		window.setInterval(() => this.#sample(), SAMPLE_MS);
		window.setInterval(() => void this.#refresh(), REFRESH_MS);
	}
	/** Plays another stream from now on. */
	select(name) {
		if (name === this.wanted || name === this.stream?.name) return;
		this.wanted = name;
		this.#pausedByViewer = false;
		this.#finish({ why: "switched" });
		this.#wake();
	}
	/** Runs as long as the page is open. */
	async run() {
		for (;;) {
			const stream = await this.#find();
			if (stream.name !== this.stream?.name) this.measured = new Measured();
			this.stream = stream;
			const outcome = await this.#play(stream);
			this.#outage = outcome.why === "failed";
			if (outcome.why === "failed") {
				this.view.state("bad", `${outcome.reason} Trying again…`);
				await this.#sleep(this.#again.next());
			} else if (outcome.why === "ended") await this.#untilLive(stream);
		}
	}
	async #find() {
		const wait = new Backoff(...RETRY_MS);
		for (;;) {
			try {
				const streams = await fetchStreams();
				const stream = choose(streams, this.wanted);
				this.view.streams(streams, stream?.name ?? this.wanted);
				if (stream) return stream;
				const what = this.wanted === "" ? "There is no stream yet." : `There is no stream “${this.wanted}” yet.`;
				this.view.state("quiet", `${what} It starts here by itself as soon as there is one.`);
			} catch (error) {
				this.view.state("bad", `${error.message} Trying again…`);
			}
			await this.#sleep(wait.next());
		}
	}
	async #play(stream) {
		this.#trouble = "";
		this.#wasLive = false;
		this.#progressAt = performance.now();
		this.view.state("quiet", stream.problem === "" ? "Starting…" : `Starting… The publisher reports: ${stream.problem}`);
		const { measured } = this;
		const done = new Promise((resolve) => this.#finish = resolve);
		this.player = this.makePlayer(this.video, stream.url, {
			segment: (url, bytes) => measured.bytes.add(url, bytes),
			error: (detail, trouble, fatal) => {
				this.#trouble = trouble || this.#trouble;
				keep(measured.errors, detail);
				if (fatal) keep(measured.fatalErrors, detail);
			},
			failed: (reason) => this.#finish({
				why: "failed",
				reason
			})
		});
		measured.meter.restart();
		this.#start();
		const outcome = await done;
		this.#finish = () => {};
		this.player.destroy();
		this.player = null;
		return outcome;
	}
	/** Begins to play; where sound needs a gesture first, without sound. */
	async #start() {
		const { video } = this;
		try {
			if (!this.#pausedByViewer) await video.play();
		} catch (error) {
			if (error.name !== "NotAllowedError") return;
			if (video.muted) {
				this.#blocked = true;
				return;
			}
			video.muted = true;
			await this.#start();
		}
	}
	/** Returns when the ended stream goes on, is no longer offered, or another one is wanted. */
	async #untilLive(stream) {
		this.view.state("quiet", "The stream has ended. If it comes back, it plays here.");
		const wait = new Backoff(2e3, 15e3);
		do {
			await this.#sleep(wait.next());
			const streams = await this.#refresh();
			if (!(this.wanted === "" || this.wanted === stream.name) || streams && !choose(streams, stream.name)) return;
		} while (!await isLive(stream.url));
	}
	/** Shows which streams there are now; null when the publisher does not say. */
	async #refresh() {
		if (document.hidden || !this.stream) return null;
		try {
			const streams = await fetchStreams();
			this.view.streams(streams, this.stream.name);
			return streams;
		} catch {
			return null;
		}
	}
	#started() {
		if (this.player) this.measured.startupMs ??= performance.now() - this.measured.startedAt;
	}
	#sample() {
		const { video, measured, player } = this;
		const now = performance.now();
		const position = this.#outage && !player ? this.#position : video.currentTime;
		measured.meter.take({
			now,
			position,
			paused: this.#pausedByViewer || this.#blocked || !(player || this.#outage),
			sought: this.#sought,
			ended: video.ended
		});
		this.#sought &&= video.seeking;
		if (!player) return;
		const moved = position !== this.#position && video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA && !video.seeking;
		this.#position = position;
		if (this.#blocked) {
			this.#progressAt = now;
			measured.startedAt = now;
			this.view.state("quiet", "Press play to start.");
		} else if (this.#pausedByViewer) {
			this.#progressAt = now;
			this.view.state("quiet", "Paused");
		} else if (moved && position > 0) {
			this.#progressAt = now;
			this.#started();
			this.#again.reset();
			this.#trouble = "";
			const live = player.latency() !== null || !Number.isFinite(video.duration);
			this.#wasLive ||= live;
			this.view.state("good", live ? "Live" : this.#wasLive ? "The stream has ended. This is the rest of it." : "Playing a recording");
		} else if (measured.meter.stalled) this.view.state("bad", this.#trouble === "" ? "Waiting for data…" : `Waiting for data. ${this.#trouble}`);
		if (now - this.#progressAt > NO_PROGRESS_MS) this.#finish({
			why: "failed",
			reason: this.#trouble || "Playback does not move."
		});
	}
	#sleep(ms) {
		return new Promise((resolve) => {
			const timer = setTimeout(resolve, ms);
			this.#wake = () => {
				clearTimeout(timer);
				resolve();
			};
		});
	}
	/** True while there is nothing that could play. */
	get idle() {
		return this.player === null && !this.#outage;
	}
	/** The host whose bytes are the origin's. */
	get origin() {
		return this.stream ? hostOf(this.stream.url) : location.host;
	}
};
function keep(list, entry) {
	list.push(entry);
	if (list.length > KEPT_ERRORS) list.shift();
}
// src/page.ts
var FACTS_MS = 500;
/** Brings the page to life. Note is one line to show for good, or "". Without makePlayer only the note shows. */
function open(makePlayer, note) {
	const video = element("video", HTMLVideoElement);
	const unmute = element("unmute", HTMLButtonElement);
	const select = element("stream", HTMLSelectElement);
	showText("note", note);
	if (!makePlayer) {
		setState("bad", "Nothing can be played here.");
		return;
	}
	const wanted = new URLSearchParams(location.search).get("stream") ?? "";
	const session = new Session(video, makePlayer, {
		state: setState,
		streams: (all, current) => showStreams(select, all, current)
	}, wanted);
	select.addEventListener("change", () => {
		const url = new URL(location.href);
		url.searchParams.set("stream", select.value);
		history.replaceState(null, "", url);
		session.select(select.value);
	});
	unmute.addEventListener("click", () => {
		video.muted = false;
		if (video.volume === 0) video.volume = 1;
		video.focus();
	});
	const show = () => {
		video.hidden = session.idle;
		unmute.hidden = session.idle || !video.muted;
		showFacts(session);
	};
	video.addEventListener("volumechange", show);
	video.addEventListener("playing", show);
	window.setInterval(show, FACTS_MS);
	window.dandelion = { snapshot: () => snapshot(session) };
	session.run();
}
function setState(mood, text) {
	const state = element("state", HTMLElement);
	if (state.dataset.mood !== mood) state.dataset.mood = mood;
	showText("state", text);
}
function showStreams(select, all, current) {
	const names = all.map((stream) => stream.name);
	if (current !== "" && !names.includes(current)) names.unshift(current);
	if (names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) select.replaceChildren(...names.map((name) => new Option(name, name)));
	select.value = current;
	element("streams", HTMLElement).hidden = names.length < 2;
	document.title = current === "" ? "Dandelion" : `${current} · Dandelion`;
}
function showFacts(session) {
	const { measured, player, video } = session;
	const facts = phrases({
		share: player?.kind === "hls.js" || measured.bytes.share("").boxBytes > 0 ? measured.bytes.share(session.origin) : null,
		startupMs: measured.startupMs,
		stalls: measured.meter.stalls,
		stallSeconds: measured.meter.stallSeconds,
		latency: player?.latency() ?? null,
		height: video.videoHeight,
		bitrate: player?.bitrate() ?? 0
	});
	const list = element("facts", HTMLElement);
	while (list.children.length > facts.length) list.lastElementChild?.remove();
	while (list.children.length < facts.length) list.append(document.createElement("li"));
	facts.forEach((fact, i) => {
		const item = list.children[i];
		if (item && item.textContent !== fact) item.textContent = fact;
	});
	const hosts = Object.entries(measured.bytes.byHost());
	element("sources", HTMLElement).hidden = hosts.length === 0;
	const rows = hosts.map(([host, bytes]) => {
		const row = document.createElement("tr");
		const name = document.createElement("th");
		name.scope = "row";
		name.textContent = host === session.origin ? `${host} (the origin)` : host;
		const size = document.createElement("td");
		size.textContent = byteSize(bytes);
		row.append(name, size);
		return row;
	});
	if (element("sources", HTMLDetailsElement).open) element("hosts", HTMLElement).replaceChildren(...rows);
}
function snapshot(session) {
	const { measured, video, player } = session;
	const { buffered } = video;
	return {
		player: player?.kind ?? "",
		state: element("state", HTMLElement).textContent,
		stream: session.stream?.name ?? "",
		origin: session.origin,
		played_seconds: measured.meter.playedSeconds,
		startup_ms: measured.startupMs,
		stalls: measured.meter.stalls,
		stall_seconds: measured.meter.stallSeconds,
		latency: player?.latency() ?? null,
		errors: [...measured.errors],
		fatal_errors: [...measured.fatalErrors],
		bytes_by_host: measured.bytes.byHost(),
		current_time: video.currentTime,
		buffered_end: buffered.length > 0 ? buffered.end(buffered.length - 1) : 0,
		video_width: video.videoWidth,
		frames_decoded: video.getVideoPlaybackQuality?.().totalVideoFrames ?? 0
	};
}
function showText(id, text) {
	const target = element(id, HTMLElement);
	if (target.textContent !== text) target.textContent = text;
	if (id === "note") target.hidden = text === "";
}
function element(id, type) {
	const found = document.getElementById(id);
	if (!(found instanceof type)) throw new Error(`the page has no ${type.name} #${id}`);
	return found;
}
// src/fallback.ts
var missing = "This page was built without the player library";
if (nativeSupported(document.createElement("video"))) open(nativePlayer, `${missing}; the browser plays by itself and does not tell where the bytes come from.`);
else open(null, `${missing}, and this browser does not play HLS by itself. Chrome and Edge from version 142 and Safari do.`);

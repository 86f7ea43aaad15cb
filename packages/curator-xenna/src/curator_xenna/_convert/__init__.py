# SPDX-License-Identifier: Apache-2.0
"""Resources and runtime environments of a stage, as Xenna and Ray have them."""
